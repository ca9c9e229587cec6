"""A server on the demo model, for tests of its clients."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("BITNET_RUN", os.path.join(ROOT, "target", "release", "bitnet-run"))
MODEL = os.path.join(ROOT, "models", "bard-11m.i2_s.gguf")


@contextlib.contextmanager
def server(*args):
    """Starts a server at a free port, and gives its address; it is stopped at the end."""
    command = [PROGRAM, "serve", "-m", MODEL, "--port", "0", *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = []
    try:
        for line in process.stderr:
            log.append(line)
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                break
        else:
            sys.exit("failed: the server does not begin: " + "".join(log))
        # What it says later is read, so that no pipe fills.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found.group(1)
    finally:
        process.terminate()
        process.wait()


def ask(url, body=None):
    """Sends an object, and returns the one that is answered."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
