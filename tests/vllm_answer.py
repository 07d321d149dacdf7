"""Run by tests/test_vllm.py with the Python that has vLLM: answer greedily, with and without LoRA.

Reads one JSON object from stdin and writes one to the file named (vLLM's own processes write to
stdout until they end). Knows nothing of macpo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    request = json.load(sys.stdin)
    adapter = json.loads((Path(request["adapter"]) / "adapter_config.json").read_text())
    llm = LLM(
        model=adapter["base_model_name_or_path"],
        enable_lora=True,
        max_lora_rank=adapter["r"],
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=request["new_tokens"], ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    answers = {}
    for name, lora in (("base", None), ("adapter", LoRARequest("a", 1, request["adapter"]))):
        outputs = llm.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
        answers[name] = [list(output.outputs[0].token_ids) for output in outputs]
    Path(sys.argv[1]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
