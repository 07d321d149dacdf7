"""Two ranks over gloo: what they tell one another, and stages that they run together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from macpo.policies import WEIGHTS_FILE
from macpo.ranks import ALONE, Ranks, Told, shares
from macpo.records import read_answers, read_jsonl, read_scores
from macpo.store import Artifact, Checkpoints
from tests.ranks import tasks
from tests.ranks.partner import both, partnered
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """This process as rank 0, and one partner for all tests."""
    with partnered() as two:
        yield two


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model"), "llama", seed=1))


def made(artifact: Artifact | str | None) -> Artifact:
    assert isinstance(artifact, Artifact), artifact
    return artifact


def saved_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint of the stage under way."""
    [workspace] = folder.glob("store/.partial/*-*")
    found = Checkpoints(workspace / "checkpoints").latest()
    return None if found is None else found[0]


def test_words_of_any_length_reach_all(ranks: Ranks) -> None:
    sizes = [0, 1, 990, 1024, 5000]
    said = both(ranks, "say", sizes=sizes)
    assert said == [[[0, "a" * n, 0.1], [1, "b" * n, 0.1]] for n in sizes]
    for size in sizes:
        assert both(ranks, "hear", size=size) == "x" * size


@pytest.mark.parametrize("bucket", [2, 4, 100])
def test_sums_are_the_same_everywhere(ranks: Ranks, bucket: int) -> None:
    """An odd count, in tensors that the ends of buckets cut."""
    mine, theirs = [0.1, 1e8, -3.0, 7.5, 2.0], [0.2, 1.0, 3.0, 0.25, -1e-9]
    found = both(ranks, "add_up", numbers=[mine, theirs], lengths=[3, 2], bucket=bucket)
    assert found[0] == found[1]
    first, second = found[0]
    assert [*first, *second] == pytest.approx([0.3, 1e8 + 1, 0.0, 7.75, 2.0])


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_two_ranks_train_as_one_does(ranks: Ranks, tmp_path: Path, model: str, kind: str) -> None:
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    alone = made(tasks.make(ALONE, one, model, kind))
    together = made(both(ranks, "make", folder=two, model=model, kind=kind))
    assert together.key == alone.key
    ours, theirs = (load_file(a.path / WEIGHTS_FILE) for a in (alone, together))
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 1e-5
    logs = [list(read_jsonl(a.path / "log.jsonl")) for a in (alone, together)]
    assert len(logs[0]) == 4
    for mine, other in zip(*logs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert math.isclose(mine[name], other[name], rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "score"])
def test_a_rank_that_is_short_of_memory_divides_its_own_share_and_rank_0_tells_of_it(
    ranks: Ranks, tmp_path: Path, model: str, kind: str
) -> None:
    plenty, scarce = (str(tmp_path / name) for name in ("plenty", "scarce"))
    expected = made(both(ranks, "make", folder=plenty, model=model, kind=kind))
    found, said = both(ranks, "make_short_of_memory", folder=scarce, model=model, kind=kind)
    assert made(found).key == expected.key
    assert said
    assert all(text.startswith("rank 1: out of memory with ") for text in said)
    if kind == "score":
        ours, theirs = read_scores(found.path), read_scores(expected.path)
        wanted = {name: score.sum_logprob for name, score in theirs.items()}
        assert {n: s.sum_logprob for n, s in ours.items()} == pytest.approx(wanted, abs=1e-5)
        return
    ours, theirs = (load_file(a.path / WEIGHTS_FILE) for a in (found, expected))
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in theirs) < 1e-5


@pytest.mark.parametrize("tuning", ["dropout", "full"])
def test_two_ranks_go_on_to_the_same_bytes(
    ranks: Ranks, tmp_path: Path, model: str, tuning: str
) -> None:
    unbroken, broken = (str(tmp_path / name) for name in ("unbroken", "broken"))
    whole = made(both(ranks, "make", folder=unbroken, model=model, kind="sft", tuning=tuning))
    assert (
        both(ranks, "make", folder=broken, model=model, kind="sft", tuning=tuning, step=3) is None
    )
    assert saved_step(Path(broken)) == 2
    resumed = made(both(ranks, "make", folder=broken, model=model, kind="sft", tuning=tuning))
    assert resumed.digest == whole.digest


def test_dropout_draws_other_places_on_each_rank_and_the_same_again(
    ranks: Ranks, tmp_path: Path, model: str
) -> None:
    first, second, alone = (str(tmp_path / name) for name in "abc")
    once = made(both(ranks, "make", folder=first, model=model, kind="sft", tuning="dropout"))
    again = made(both(ranks, "make", folder=second, model=model, kind="sft", tuning="dropout"))
    assert once.digest == again.digest
    assert made(tasks.make(ALONE, alone, model, "sft", "dropout")).digest != once.digest


@pytest.mark.parametrize("asked", [0, 1])
def test_whichever_rank_is_asked_to_stop_all_stop_with_a_checkpoint(
    ranks: Ranks, tmp_path: Path, model: str, asked: int
) -> None:
    stopped = both(
        ranks,
        "make",
        folder=str(tmp_path),
        model=model,
        kind="sft",
        step=1,
        error="asked",
        who=[asked],
    )
    assert stopped is None
    assert saved_step(tmp_path) == 1


def test_ranks_with_other_weights_are_found_out_before_a_checkpoint(
    ranks: Ranks, tmp_path: Path, model: str
) -> None:
    words = both(ranks, "make", folder=str(tmp_path), model=model, kind="sft", differ=True)
    assert words == (
        "rank 1 is at step 2 with other weights than rank 0 at step 2: they compute differently; "
        "run on machines of one kind"
    )
    assert saved_step(tmp_path) is None


def test_two_ranks_score_as_one_does(ranks: Ranks, tmp_path: Path, model: str) -> None:
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    alone = made(tasks.make(ALONE, one, model, "score"))
    together = made(both(ranks, "make", folder=two, model=model, kind="score"))
    ours, theirs = read_scores(alone.path), read_scores(together.path)
    assert list(ours) == list(theirs)
    for name, score in ours.items():
        assert theirs[name].tokens == score.tokens
        assert theirs[name].sum_logprob == pytest.approx(score.sum_logprob, abs=1e-5)


def test_two_ranks_answer_as_one_does(ranks: Ranks, tmp_path: Path, model: str) -> None:
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    alone = made(tasks.make(ALONE, one, model, "respond"))
    together = made(both(ranks, "make", folder=two, model=model, kind="respond"))
    assert list(read_answers(together.path)) == list(read_answers(alone.path))


@pytest.mark.parametrize(("tied", "recompute"), [(False, False), (True, True)])
def test_a_base_divided_among_ranks_trains_and_scores_as_a_whole_one(
    ranks: Ranks, tmp_path: Path, tied: bool, recompute: bool
) -> None:
    """Scoring stands before training, whose passes must not find what scoring left; batches of four
    and packs of few tokens let one rank forward more often than the other."""
    model = str(tiny_folder(tmp_path / "model", "qwen3", layers=3, tie_word_embeddings=tied))
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    kinds = ["score", "dpo", "sft"]
    [whole], trains, alone = tasks.shard(ALONE, one, model, kinds)
    parts, _, together = both(
        ranks, "shard", folder=two, model=model, kinds=kinds, checkpoint_activations=recompute
    )
    assert all(part < trains + 0.55 * (whole - trains) for part in parts)
    ours, theirs = (read_scores(artifacts[0].path) for artifacts in (alone, together))
    for name, score in ours.items():
        assert theirs[name].sum_logprob == pytest.approx(score.sum_logprob, abs=1e-4)
    for mine, other in zip(alone[1:], together[1:], strict=True):
        assert mine.key == other.key
        mine, other = (load_file(artifact.path / WEIGHTS_FILE) for artifact in (mine, other))
        assert max(float((mine[n] - other[n]).abs().max()) for n in mine) < 1e-5


def test_shares_are_of_like_weight_and_leave_nothing_out() -> None:
    weights = [9, 1, 1, 1, 8, 7, 1, 2]
    dealt = shares(weights, 3)
    assert sorted(place for share in dealt for place in share) == list(range(8))
    assert [sum(weights[place] for place in share) for share in dealt] == [10, 10, 10]
    assert shares([5.0], 3) == [[0], [], []]
    assert shares(weights, 1) == [list(range(8))]


def test_a_share_is_told_of_as_the_whole() -> None:
    heard: list[int] = []
    told = Told(heard.append, 2, 5)
    told(1)
    told(1)
    told.finish()
    assert heard == [2, 3]
    idle: list[int] = []
    Told(idle.append, 0, 4).finish()
    assert idle == [4]
