"""The page of a server on the demo model, as its users see it. Run by .ci/page."""

import base64
import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

import served

# Longest time for what takes no time, on a machine that does much else.
PATIENCE = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER, TAB, ESCAPE, SHIFT = "\ue007", "\ue004", "\ue00c", "\ue008"
SCRIPT = "<script>document.title = 'bad'</script><img src=x onerror=\"document.title = 'bad'\">"


class Browser:
    """A session of chromedriver."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu"]}
        always = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        wait_for("chromedriver", lambda: self.request("GET", "/status")["ready"])
        made = self.request("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        self.base += "/session/" + made["sessionId"]

    def request(self, method, path, body=None):
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from error

    def post(self, path, **body):
        return self.request("POST", path, body)

    def run(self, script, *args):
        return self.post("/execute/sync", script=script, args=list(args))

    def devtools(self, cmd, **params):
        return self.post("/goog/cdp/execute", cmd=cmd, params=params)

    def log(self, kind):
        return self.post("/se/log", type=kind)

    def find(self, selector):
        found = self.post("/element", using="css selector", value=selector)
        return "/element/" + found[ELEMENT]

    def click(self, selector):
        self.post(self.find(selector) + "/click")

    def keys(self, *keys):
        """Presses keys, one after the other; a list is pressed together."""
        actions = []
        for key in keys:
            together = key if isinstance(key, list) else [key]
            actions += [{"type": "keyDown", "value": k} for k in together]
            actions += [{"type": "keyUp", "value": k} for k in reversed(together)]
        self.post("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def shot(self, name):
        folder = os.environ.get("SHOTS")
        if folder:
            with open(os.path.join(folder, name + ".png"), "wb") as file:
                file.write(base64.b64decode(self.request("GET", "/screenshot")))


def wait_for(what, is_so):
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            found = is_so()
            if found:
                return found
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def chromedriver():
    process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if "started successfully on port" in line:
                yield int(line.rsplit(" ", 1)[1].strip().rstrip("."))
                break
    finally:
        process.terminate()
        process.wait()


# What the page asks of the server gets further fields, so that texts are as a test needs them.
WITH_FIELDS = """
const [fields] = arguments;
window.ownFetch ??= window.fetch;
window.fetch = (path, options) => {
  if (options?.body) options.body = JSON.stringify({...JSON.parse(options.body), ...fields});
  return window.ownFetch(path, options);
};
"""
LAST = "const all = document.querySelectorAll('#talk article'); return all[all.length - 1]"


def last_text(browser):
    return browser.run(LAST + "?.children[1].textContent ?? ''")


def is_idle(browser):
    return browser.run("return document.querySelector('#stop').hidden")


def answered(browser, count):
    """Waits until there are so many messages, and the last one is whole."""
    messages = "return document.querySelectorAll('#talk article').length"
    wait_for("answer", lambda: browser.run(messages) == count and is_idle(browser))


def focused(browser):
    return browser.run(
        "const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent"
    )


def go_to(browser, name, key=TAB):
    """Moves the focus by a key until it is where it should be."""
    for _ in range(100):
        if focused(browser) == name:
            return
        browser.keys(key)
    raise AssertionError(f"{name} cannot be reached by keys")


def fits(browser):
    wide = browser.run("return document.documentElement.scrollWidth > window.innerWidth")
    assert not wide, "the page is wider than its window"


def check(browser, url):
    browser.post("/url", url=url + "/")
    wait_for("model", lambda: browser.run("return document.title") == "bard")
    browser.shot("empty")

    # Send, stream, and the end.
    browser.run(WITH_FIELDS, {"max_tokens": 40, "temperature": 0, "ignore_eos": True})
    browser.keys(*"Speak!", ENTER)
    answered(browser, 2)
    text = last_text(browser)
    assert len(text) > 20, text
    assert "tokens/s" in browser.run(LAST + ".textContent")

    # Another answer, and the message again.
    browser.run("[...document.querySelectorAll('.tools button')].find(b => b.textContent == 'Again').click()")
    answered(browser, 2)
    assert last_text(browser) == text
    browser.run("[...document.querySelectorAll('.tools button')].find(b => b.textContent == 'Edit').click()")
    assert browser.run("return document.querySelector('#message').value") == "Speak!"
    browser.keys(ENTER)
    answered(browser, 2)

    # A text without end comes in pieces, until it is stopped.
    browser.run(WITH_FIELDS, {"max_tokens": 30000, "temperature": 0, "ignore_eos": True})
    browser.keys(*"On!", ENTER)
    lengths = set()

    def grows():
        lengths.add(len(last_text(browser)))
        return len(lengths) > 3

    wait_for("pieces", grows)
    browser.shot("writing")
    browser.click("#stop")
    answered(browser, 4)
    assert "stopped" in browser.run(LAST + ".textContent")
    slots = lambda: served.ask(url + "/slots")
    wait_for("free slot", lambda: not any(slot["is_processing"] for slot in slots()))
    assert slots()[0]["n_past"] < 30000
    # And so does Escape.
    browser.keys(*"On again!", ENTER)
    wait_for("text", lambda: len(last_text(browser)) > 20)
    browser.keys(ESCAPE)
    answered(browser, 6)
    assert focused(browser) == "message", focused(browser)

    # What a model writes is text, whatever it is.
    grammar = "root ::= " + json.dumps(SCRIPT + "\n```\n" + SCRIPT + "\n```\n**" + SCRIPT + "**")
    browser.run(WITH_FIELDS, {"max_tokens": 600, "grammar": grammar})
    browser.keys(*"Be bad!", ENTER)
    answered(browser, 8)
    assert last_text(browser).count(SCRIPT) == 3, last_text(browser)
    made = "return document.querySelectorAll('#talk script, #talk img').length"
    assert browser.run(made) == 0
    assert browser.run("return document.title") == "bard"
    browser.shot("script")

    # By keys alone: everything can be reached, and settings change.
    browser.run("document.querySelector('#message').focus()")
    reached = []
    for _ in range(60):
        browser.keys(TAB)
        reached.append(focused(browser))
    for name in ["message", "send", "settings-open", "new", "export", "talk", "Copy", "Again"]:
        assert name in reached, (name, reached)
    go_to(browser, "settings-open", [SHIFT, TAB])
    browser.keys(ENTER)
    assert browser.run("return document.querySelector('#settings').open")
    go_to(browser, "max_tokens")
    browser.keys(*"16")
    browser.shot("settings")
    browser.keys(ESCAPE)
    assert not browser.run("return document.querySelector('#settings').open")
    browser.run("window.fetch = window.ownFetch")
    go_to(browser, "new")
    browser.keys(ENTER)
    assert focused(browser) == "message", focused(browser)
    browser.keys(*"Short!", ENTER)
    answered(browser, 2)

    # Talks and settings outlast the page.
    browser.post("/refresh")
    wait_for("talks", lambda: browser.run("return document.querySelectorAll('#list li').length") == 2)
    kept = browser.run("return JSON.parse(localStorage.settings).max_tokens")
    assert kept == 16, kept

    # A phone, and both colour schemes.
    browser.run("document.querySelector('#list li:nth-child(2) button').click()")
    for scheme in ["light", "dark"]:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.devtools("Emulation.setEmulatedMedia", features=[feature])
        for name, width, height in [("phone", 375, 700), ("desktop", 1280, 800)]:
            browser.devtools(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=height, deviceScaleFactor=2, mobile=name == "phone",
            )
            fits(browser)
            browser.shot(f"{name}-{scheme}")
            if name == "phone":
                browser.click("#menu")
                assert browser.run("return document.querySelector('#list').offsetParent !== null")
                fits(browser)
                browser.shot(f"{name}-{scheme}-talks")
                browser.click("#menu")
                browser.click("#settings-open")
                fits(browser)
                browser.shot(f"{name}-{scheme}-settings")
                browser.keys(ESCAPE)

    # Nothing is said on the console, and nothing asked of anybody else.
    console = browser.log("browser")
    assert not console, console
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked, events
    foreign = [one for one in asked if not one.startswith((url + "/", "data:"))]
    assert not foreign, foreign


def main():
    flags = [
        "--alias", "bard", "-np", "1", "-c", "32768", "--chat-template", "chatml",
        "--override-kv", "bitnet-b1.58.context_length=int:32768",
    ]
    with served.server(*flags) as url, chromedriver() as port:
        browser = Browser(port)
        try:
            check(browser, url)
        finally:
            browser.request("DELETE", "")
    print("the page in Chromium: passed")


main()
