"""A worker that speaks as macpo's own does (served/worker.py), and does wrong when told to.

Run as a script. What it does in each of its lives stands in the file `acts` of the "model's"
folder, a line each; it writes into the same folder what it was asked (`asked`, a line per request)
and the numbers of its processes (`pids`). Its child holds its pipe open, whatever becomes of it.

    well            answers everything
    die N           is killed after N answers
    hang N          says nothing any more after N answers
    junk            writes what is no message
    unable TEXT     says that it cannot start
    fail TEXT       says that it failed, when it is asked
    forget N        says that it is done after N answers
    dtype NAME      has loaded the model in another dtype
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STOP = 2


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def answer(item: dict[str, Any], adapter: dict[str, Any] | None) -> None:
    """Answer with the seed and the adapter's number, so that tests see what came through."""
    ids = [item["seed"], 0 if adapter is None else adapter["id"], STOP]
    logprobs = [-0.5] * len(ids) if item["told"] else None
    say(index=item["index"], ids=ids, reason=STOP, logprobs=logprobs)


def main() -> None:
    start = json.loads(sys.stdin.readline())["start"]
    folder = Path(start["model"])
    acts = (folder / "acts").read_text().splitlines()
    (folder / "acts").write_text("\n".join(acts[1:]))
    act, _, more = (acts or ["well"])[0].partition(" ")
    child = subprocess.Popen(["sleep", "60"])  # as vLLM starts processes of its own
    with (folder / "pids").open("a") as file:
        file.write(f"{os.getpid()} {child.pid}\n")
    if act == "junk":
        print("INFO loading weights", flush=True)
    if act == "unable":
        say(failed=more)
    say(
        ready={"version": "0", "dtype": more if act == "dtype" else start["dtype"], "device": "cpu"}
    )
    for line in sys.stdin:
        request = json.loads(line)
        items = request.get("answer", [])
        if act == "fail":
            say(failed=more)
        with (folder / "asked").open("a") as file:
            file.write(json.dumps([item["index"] for item in items]) + "\n")
        for number, item in enumerate(items):
            if act in ("die", "hang", "forget") and number == int(more):
                break
            answer(item, request["adapter"])
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "hang":
            time.sleep(60)
        say(done=len(items))


main()
