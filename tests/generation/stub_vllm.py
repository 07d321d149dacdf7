"""A package that passes for vLLM: what macpo's worker takes of it, without a model.

`install(folder)` writes it as `vllm`. It talks to stdout as vLLM does, starts a process, and
answers with the seed, the adapter's number and the last token of the prompt.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": """
import subprocess, sys, types
__version__ = "0.99"

class EngineArgs:
    def __init__(self, **options):
        self.options = options

class TokensPrompt(dict):
    pass

class SamplingParams:
    def __init__(self, **options):
        self.__dict__.update(options)

class LLMEngine:
    @classmethod
    def from_engine_args(cls, args):
        return cls(args.options)

    def __init__(self, options):
        print("INFO loading weights: this goes to stdout", flush=True)
        if options["model"] == "broken":
            raise ValueError("no such\\nmodel")
        self.child = subprocess.Popen(["sleep", "60"])
        with open(options["model"] + "/pids", "w") as file:
            file.write(f"{self.child.pid}")
        self.model_config = types.SimpleNamespace(dtype="torch." + options["dtype"])
        self.options, self.asked, self.asleep = options, [], False

    def add_lora(self, request):
        if self.options.get("max_lora_rank") != 16:
            raise ValueError("the adapter does not fit")

    def add_request(self, number, prompt, params, lora_request=None):
        assert not self.asleep
        self.asked.append((number, prompt["prompt_token_ids"], params, lora_request))

    def has_unfinished_requests(self):
        return bool(self.asked)

    def step(self):
        print("a step", flush=True)
        number, ids, params, lora = self.asked.pop()
        drawn = [params.seed, lora.lora_int_id if lora else 0, ids[-1]]
        told = None
        if params.logprobs == 0:
            told = [{token: types.SimpleNamespace(logprob=-0.25)} for token in drawn]
        ended = params.max_tokens > 3
        answer = types.SimpleNamespace(
            token_ids=drawn, logprobs=told, stop_reason=7 if ended else None,
            finish_reason="stop" if ended else "length")
        return [types.SimpleNamespace(request_id=number, finished=True, outputs=[answer])]

    def sleep(self, level):
        self.asleep = True

    def wake_up(self):
        self.asleep = False
""",
    "platforms.py": "class current_platform:\n    device_type = 'cuda'\n",
    "sampling_params.py": "class RequestOutputKind:\n    FINAL_ONLY = 2\n",
    "lora/__init__.py": "",
    "lora/request.py": """
class LoRARequest:
    def __init__(self, name, number, path):
        self.lora_name, self.lora_int_id, self.lora_path = name, number, path
""",
}


def install(folder: Path) -> None:
    """Write the package into a folder."""
    for name, text in FILES.items():
        file = folder / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
