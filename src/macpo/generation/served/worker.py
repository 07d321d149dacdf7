"""vLLM in a process and an interpreter of its own: run as a script, it imports nothing of macpo.

JSON lines come in on stdin and go out on what was stdout; whatever vLLM prints goes to stderr.

    {"start": {"model": FOLDER, "dtype": "float32", ...}}     once, first: `_start` has the keys
        {"ready": {"version": "0.32.0", "dtype": "float32", "device": "cpu"}}
    {"answer": [{"index": 0, "ids": [1, 2], "seed": 3, "told": true}, ...],
     "sampling": {...}, "stop": [2], "adapter": {"name": ..., "id": ..., "path": ...} or null}
        {"index": 0, "ids": [7, 8, 2], "reason": 2, "logprobs": [-0.1, -2.0, -0.3]}   as they come
        {"alive": 12}                                         steps so far, at most once a second
        {"done": 1}
    {"rest": true}                                            give back memory until asked again
        {"done": 0}

`told` asks for the log-probabilities of the tokens (nats, before temperature and filters). What
goes wrong is told as {"failed": "one line"}, and the process ends. The engine and all that it
starts are one process group: when the other side of stdin is gone, for whatever reason, the whole
group is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

WATCH_SECONDS = 1.0


def main() -> None:
    """Serve until stdin ends."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]
    # The engine in this very process: it is watched over from outside already, and one that starts
    # others to do the work imports everything three times and takes 1.2 GB more.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    try:
        _serve(asked, out)
    except BaseException as error:  # whatever it is, the other side has to know
        import traceback

        traceback.print_exc()
        _tell(out, {"failed": _one_line(error)})
        _end_group()


def _serve(asked: queue.SimpleQueue[str], out: TextIO) -> None:
    """Start the engine and do what is asked."""
    engine, found = _start(json.loads(asked.get())["start"])
    _tell(out, {"ready": found})
    resting = False
    while True:
        request = json.loads(asked.get())
        if "answer" in request:
            if resting:
                engine.wake_up()
            resting = False
            _answer(engine, request, out)
            _tell(out, {"done": len(request["answer"])})
        elif "rest" in request:
            if found["device"] != "cpu" and not resting:  # vLLM's CPU backend cannot sleep
                engine.sleep(level=1)
                resting = True
            _tell(out, {"done": 0})
        else:
            raise ValueError(f"a request that is not known: {sorted(request)}")


def _start(options: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Load a model.

    Args:
        options: `model`, `dtype`, `length` (the most tokens of a prompt with its answer), `rank`
            (0 without adapters), `kv_bytes`, `parallel` and `trust_remote_code`.

    Returns:
        The engine, and what it is.
    """
    import vllm
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    cpu = current_platform.device_type == "cpu"
    lora = {"enable_lora": True, "max_lora_rank": options["rank"]} if options["rank"] else {}
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=options["model"],
            dtype=options["dtype"],
            max_model_len=options["length"],
            kv_cache_memory_bytes=options["kv_bytes"],
            # With the size of the cache given, this share only has to be free at the start.
            gpu_memory_utilization=0.05,
            tensor_parallel_size=options["parallel"],
            trust_remote_code=options["trust_remote_code"],
            skip_tokenizer_init=True,  # token ids go in and come out
            generation_config="vllm",  # no sampling defaults and stop tokens out of the folder
            enforce_eager=cpu,  # compiling for a CPU takes minutes, and LoRA rules it out
            enable_sleep_mode=not cpu,
            disable_log_stats=True,
            **lora,
        )
    )
    dtype = str(engine.model_config.dtype).removeprefix("torch.")
    device = str(current_platform.device_type)
    return engine, {"version": vllm.__version__, "dtype": dtype, "device": device}


def _answer(engine: Any, request: Mapping[str, Any], out: TextIO) -> None:
    """Answer prompts, telling each answer when it is there."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    adapter, sampling = request["adapter"], request["sampling"]
    lora = None
    if adapter is not None:
        lora = LoRARequest(adapter["name"], adapter["id"], adapter["path"])
        engine.add_lora(lora)  # so that one which does not fit is refused by itself
    for item in request["answer"]:
        params = SamplingParams(
            temperature=sampling["temperature"],
            top_p=sampling["top_p"],
            top_k=sampling["top_k"],
            max_tokens=sampling["max_tokens"],
            seed=item["seed"],
            logprobs=0 if item["told"] else None,  # of the drawn token alone
            stop_token_ids=request["stop"],
            ignore_eos=True,  # `stop` is all that ends an answer
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=item["ids"])
        engine.add_request(str(item["index"]), prompt, params, lora_request=lora)
    steps, told = 0, time.monotonic()
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                _tell(out, _told(int(output.request_id), output.outputs[0]))
        steps += 1
        if time.monotonic() - told >= WATCH_SECONDS:
            told = time.monotonic()
            _tell(out, {"alive": steps})


def _told(index: int, completion: Any) -> dict[str, Any]:
    """Return an answer as it is told."""
    ids = list(completion.token_ids)
    logprobs = None
    if completion.logprobs is not None:
        pairs: Sequence[Any] = list(zip(ids, completion.logprobs, strict=True))
        logprobs = [float(found[token].logprob) for token, found in pairs]
    reason = completion.stop_reason if completion.finish_reason == "stop" else None
    return {"index": index, "ids": ids, "reason": reason, "logprobs": logprobs}


def _tell(out: TextIO, message: Mapping[str, Any]) -> None:
    """Write a line; a reader who is gone is found out elsewhere."""
    with contextlib.suppress(BrokenPipeError):
        out.write(json.dumps(message) + "\n")
        out.flush()


def _listen(asked: queue.SimpleQueue[str]) -> None:
    """Pass on what comes in; when nothing can come any more, end."""
    for line in sys.stdin:
        asked.put(line)
    _end_group()


def _watch(parent: int) -> None:
    """End when the parent is gone, even while a child that it forked holds our stdin open."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    _end_group()


def _end_group() -> None:
    """Kill this process and all that vLLM started in it."""
    group = os.getpgid(0)
    if group == os.getpid():  # a session of our own, as the parent has started us
        os.killpg(group, signal.SIGKILL)
    os._exit(1)


def _one_line(error: BaseException) -> str:
    """Return an error's own words in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:500]


if __name__ == "__main__":
    main()
