#!/usr/bin/env python3
"""Renders chat templates with jinja2 set up as Hugging Face's transformers set it up.

    pip install jinja2==3.1.6
    python3 runtime/tests/chat/golden.py > runtime/tests/chat/golden.json

With a folder, renders the templates in it instead of those of this repository:

    python3 runtime/tests/chat/golden.py FOLDER
"""

import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "", "unk_token": ""}


class Generation(jinja2.ext.Extension):
    """The tag `generation`, whose text is what a model learns to write."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


def render(source, conversation):
    """The text; None where the template refuses the conversation."""
    variables = {"add_generation_prompt": conversation.get("add_generation_prompt", True)}
    if "tools" in conversation:
        variables["tools"] = conversation["tools"]
    variables |= TOKENS | conversation.get("variables", {})
    try:
        return environment().from_string(source).render(messages=conversation["messages"], **variables)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return None


def main():
    built_in = HERE.parent.parent / "src/text/chat/templates"
    folders = [pathlib.Path(folder) for folder in sys.argv[1:]] or [built_in, HERE / "templates"]
    conversations = json.loads((HERE / "conversations.json").read_text("utf-8"))
    golden = {}
    for file in sorted(file for folder in folders for file in folder.glob("*.jinja")):
        # As tokenizer_config.json and GGUF hold it.
        source = file.read_bytes().decode("utf-8")
        golden[file.stem] = {name: render(source, talk) for name, talk in conversations.items()}
    print(json.dumps(golden, ensure_ascii=False, indent=1))


main()
