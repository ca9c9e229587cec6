"""What openai's library and lm-eval make of a server on the demo model. Run by .ci/clients."""

import array
import json
import os
import subprocess
import sys
import tempfile

import openai
import served

# A template that shows tools as Qwen's does.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if tools %}Call <tool_call>{{ tools | tojson }}</tool_call>\n{% endif %}assistant:"
)
MESSAGES = [{"role": "system", "content": "You are a poet."}, {"role": "user", "content": "Speak!"}]
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "count": {"enum": [3, 4]}},
    "required": ["yes", "count"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {
            "type": "object",
            "properties": {"where": {"enum": ["north", "south"]}},
            "required": ["where"],
            "additionalProperties": False,
        },
    },
}


def is_refused(kind, status, ask):
    """Checks that a request fails as the library's class for a status."""
    try:
        ask()
    except kind as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def with_openai(url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="key", max_retries=0)
    chat = client.chat.completions
    wish = {"model": "bard", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}

    models = client.models.list().data
    assert [model.id for model in models] == ["bard"], models

    plain = chat.create(**wish)
    content = plain.choices[0].message.content
    assert content and plain.choices[0].finish_reason == "length", plain
    assert plain.usage.completion_tokens == 12 and plain.system_fingerprint.startswith("b"), plain

    chunks = list(chat.create(**wish, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == content, pieces
    assert chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices, chunks[-1]

    # The library takes a text that has its full length for one that was cut off.
    stop = content[6:9]
    with chat.stream(**wish, stop=stop) as stream:
        events = list(stream)
        found = stream.get_final_completion().choices[0].message.content
    assert events and found == content[: content.index(stop)], found

    likely = chat.create(**wish, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(row.token for row in likely) == content, likely
    assert all(len(row.top_logprobs) == 3 and row.logprob <= 0 for row in likely), likely

    several = chat.create(**{**wish, "temperature": 1.5}, n=2, seed=1).choices
    assert [choice.index for choice in several] == [0, 1], several

    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA}}
    formed = chat.create(**{**wish, "max_tokens": 64}, response_format=form).choices[0]
    found = json.loads(formed.message.content)
    assert isinstance(found["yes"], bool) and found["count"] in (3, 4), found

    called = chat.create(**{**wish, "max_tokens": 64}, tools=[TOOL], tool_choice="required")
    [choice] = called.choices
    assert choice.finish_reason == "tool_calls", choice
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.function.name == "go", call
    assert json.loads(call.function.arguments)["where"] in ("north", "south"), call
    # The call and its result go back as the library has them.
    answer = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    chat.create(**{**wish, "messages": [*MESSAGES, choice.message, answer]}, tools=[TOOL])
    streamed = chat.create(
        **{**wish, "max_tokens": 64}, tools=[TOOL], tool_choice="required", stream=True
    )
    calls = [c.choices[0].delta.tool_calls for c in streamed if c.choices]
    assert any(calls), calls

    text = {"model": "bard", "prompt": "ROMEO:", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**text).choices[0]
    assert whole.text and whole.finish_reason == "length", whole
    pieces = [c.choices[0].text for c in client.completions.create(**text, stream=True)]
    assert "".join(pieces) == whole.text, pieces
    echoed = client.completions.create(**text, echo=True, logprobs=2).choices[0]
    assert echoed.text.endswith("ROMEO:" + whole.text), echoed
    rows = echoed.logprobs
    assert rows.token_logprobs[0] is None and len(rows.tokens) == len(rows.text_offset), rows

    error = is_refused(
        openai.BadRequestError, 400, lambda: chat.create(**{**wish, "temperature": -1})
    )
    assert error.param == "temperature" and error.type == "invalid_request_error", error.body
    is_refused(openai.BadRequestError, 400, lambda: chat.create(**wish, stream=True, top_logprobs=9))
    embed = lambda: client.embeddings.create(model="bard", input="x")
    is_refused(openai.BadRequestError, 400, embed)
    other = openai.OpenAI(base_url=url + "/none", api_key="key", max_retries=0)
    is_refused(openai.NotFoundError, 404, lambda: other.models.list())


def with_a_key(url):
    wrong = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
    text = {"model": "bard", "prompt": "ROMEO:", "max_tokens": 2}
    is_refused(openai.AuthenticationError, 401, lambda: wrong.completions.create(**text))
    right = openai.OpenAI(base_url=url + "/v1", api_key="right", max_retries=0)
    assert right.completions.create(**text).choices


def with_embeddings(url):
    """The library asks for base64, and unpacks it."""
    client = openai.OpenAI(base_url=url + "/v1", api_key="key", max_retries=0)
    texts = ["To be, or not to be", "ROMEO:"]
    embed = lambda **wish: client.embeddings.create(model="bard", **wish)
    both = embed(input=texts)
    assert [row.index for row in both.data] == [0, 1] and both.usage.prompt_tokens > 2, both.usage
    for text, row in zip(texts, both.data):
        length = sum(x * x for x in row.embedding) ** 0.5
        assert abs(length - 1) < 1e-5, length
        plain = embed(input=text, encoding_format="float").data[0].embedding
        assert array.array("f", row.embedding) == array.array("f", plain), text
    assert both.data[0].embedding != both.data[1].embedding


QUESTIONS = [
    ("ROMEO: What", [" light", " zebra"], 0),
    ("To be, or not to", [" xylophone", " be"], 1),
    ("JULIET: O", [" Romeo", " carburettor"], 0),
    ("The king is", [" qqq", " dead"], 1),
]
TASK = """
task: local_lines
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
doc_to_target: label
metric_list: [{metric: acc}]
"""


def likelihood(url, prompt, choice):
    """The log probability of a text behind another one, by the server's own numbers."""
    bare = {"max_tokens": 0, "logprobs": 0, "echo": True}
    tokens = lambda text: served.ask(url + "/tokenize", {"content": text})["tokens"]
    whole = tokens(prompt + choice)
    ids = tokens(prompt)
    answer = served.ask(url + "/v1/completions", {"prompt": ids[:0] + whole, **bare})
    return sum(answer["choices"][0]["logprobs"]["token_logprobs"][len(ids):])


def with_lm_eval(url):
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "lines.jsonl")
        with open(data, "w") as file:
            for prompt, choices, label in QUESTIONS:
                line = {"prompt": prompt, "choices": choices, "label": label}
                file.write(json.dumps(line) + "\n")
        with open(os.path.join(folder, "local_lines.yaml"), "w") as file:
            file.write(TASK % data)
        out = os.path.join(folder, "out")
        model = f"model=bard,base_url={url}/v1/completions,num_concurrent=2,max_retries=1"
        command = [
            sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
            model, "--tasks", "local_lines", "--include_path", folder, "--output_path", out,
            "--log_samples",
        ]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": folder}
        done = subprocess.run(
            command, env={**os.environ, **offline}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results, samples = None, []
        for parent, _, names in os.walk(out):
            for name in names:
                with open(os.path.join(parent, name)) as file:
                    if name.startswith("results"):
                        results = json.load(file)["results"]["local_lines"]
                    else:
                        samples = [json.loads(line) for line in file]
    assert len(samples) == len(QUESTIONS), samples
    right = 0
    for sample in samples:
        prompt, choices, label = QUESTIONS[sample["doc_id"]]
        own = [likelihood(url, prompt, choice) for choice in choices]
        found = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert all(abs(a - b) < 1e-6 for a, b in zip(own, found)), (own, found)
        right += own[label] == max(own)
    assert abs(results["acc,none"] - right / len(QUESTIONS)) < 1e-9, results


def main():
    flags = ["--alias", "bard", "-np", "2", "-c", "2048", "--chat-template", TEMPLATE]
    with served.server(*flags) as url:
        with_openai(url)
        print(f"openai {openai.__version__}: passed")
        with_lm_eval(url)
        print("lm-eval: passed")
    with served.server(*flags, "--pooling", "mean") as url:
        with_embeddings(url)
        print("openai's embeddings: passed")
    with served.server(*flags, "--api-key", "right") as url:
        with_a_key(url)
        print("openai with a key: passed")


main()
