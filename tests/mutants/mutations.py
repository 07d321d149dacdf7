"""The mutations: one line of the code each, and the tests that are to notice.

A mutation is named by the fault that it puts in. When code moves, its mutation moves along;
`tests/test_mutants.py` says which no longer fits.
"""

from __future__ import annotations

from dataclasses import dataclass

WIRING = ("tests/methods/test_wiring_macpo.py",)
OTHERS = ("tests/methods/test_wiring_others.py",)
SEEDS = ("tests/methods/test_wiring_seeds.py",)
FILTERED = ("tests/test_filter.py",)
LOSSES = ("tests/test_losses.py",)
JUDGING = ("tests/test_judging.py",)
SUPERVISED = ("tests/test_supervisors.py",)
TRAINING = ("tests/training/test_training_stages.py",)
TRAINER = ("tests/training/test_trainer.py",)
KEYS = ("tests/training/test_stage_keys.py",)
DATA = ("tests/data/test_data_stage.py", "tests/data/test_data_splits.py")
SCORING = ("tests/likelihood/test_scoring.py",)
EXECUTION = ("tests/test_execution.py",)
PUBLISH = ("tests/test_publish.py",)
SERVING = ("tests/generation/test_served_generator.py",)
WATCHED = ("tests/generation/test_served_engine.py",)
POLICIES = ("tests/test_policies.py",)
RESPOND = ("tests/generation/test_respond.py",)
EVALUATION = ("tests/test_evaluation.py",)
COLLAPSE = ("tests/test_collapse.py",)
STATISTICS = ("tests/test_statistics.py",)
JUDGE = ("tests/judge/test_judge.py",)
REWARD = ("tests/test_reward_evaluator.py",)
REWARD_TRAINING = ("tests/test_reward_training.py",)
JUDGMENTS = ("tests/annotation/test_judgments.py",)
PEOPLE = ("tests/annotation/test_results.py",)
AGREEMENT = ("tests/annotation/test_agreement.py",)
CHAT = ("tests/test_chat.py",)
FORM = ("tests/test_form.py",)
GUARD = ("tests/test_guard.py",)
PAIRED = ("tests/test_pairs.py",)
RECIPES = ("tests/test_recipes.py",)

ANCHORED = ("tests/test_anchoring.py",)

MACPO = "src/macpo/methods/macpo.py"
ANCHORING = "src/macpo/anchoring.py"
PROGRAM = "src/macpo/program.py"
ROUNDS = "src/macpo/rounds.py"
FILTER = "src/macpo/filter.py"
SERVED = "src/macpo/generation/served/generator.py"
NEGATIVES = "src/macpo/negatives.py"
COMPARISON = "src/macpo/evaluation/judge/comparison.py"
RESULTS = "src/macpo/annotation/results.py"
TALK = "src/macpo/chat.py"
SUPERVISORS = "src/macpo/supervisors.py"
PAIRS = "src/macpo/pairs.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault: `before`, which stands once in `file`, becomes `after`."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """Return the source with the fault in it.

        Raises:
            ValueError: `before` does not stand in it exactly once.
        """
        count = source.count(self.before)
        if count != 1:
            raise ValueError(f"{self.name}: {self.before!r} stands {count} times in {self.file}")
        return source.replace(self.before, self.after)


MUTATIONS = (
    # Initialisation (Algorithm 1, before the rounds)
    Mutation(
        "negatives start from the base and not from the positive policy",
        NEGATIVES,
        'name: program.fine_tune_on_dataset(policy, "negative")',
        'name: program.fine_tune_on_dataset(program.untrained(policy.agent), "negative")',
        WIRING,
    ),
    Mutation(
        "the student's negative learns good weak labels",
        NEGATIVES,
        "labels = program.weak_labels(negative)",
        "labels = program.weak_labels(naive.teachers)",
        WIRING,
    ),
    Mutation(
        "the student's negative starts from its base",
        NEGATIVES,
        'program.fine_tune_on_answers(naive.student, "negative", labels)',
        'program.fine_tune_on_answers(program.untrained(naive.student.agent), "negative", labels)',
        WIRING,
    ),
    Mutation(
        "negatives learn the good side",
        PROGRAM,
        '"chosen" if role == "positive" else "rejected"',
        '"chosen"',
        WIRING,
    ),
    Mutation(
        "negatives are trained by the section of positives",
        PROGRAM,
        '            "chosen" if role == "positive" else "rejected",\n'
        '            agent.sft if role == "positive" else agent.negative_sft,',
        '            "chosen" if role == "positive" else "rejected",\n            agent.sft,',
        WIRING,
    ),
    Mutation(
        "weak labels are the last teacher's",
        PROGRAM,
        "first = teachers[self.team.teachers[0].name]",
        "first = teachers[self.team.teachers[-1].name]",
        WIRING,
    ),
    Mutation(
        "weak labels are of the test prompts",
        PROGRAM,
        'return self.respond("init", first, "student", 0)',
        'return self.respond("init", first, "test", 0)',
        WIRING,
    ),
    Mutation(
        "teachers see the student's half",
        PROGRAM,
        'self.fine_tune_on_dataset(self.untrained(teacher), "positive")',
        'self.fine_tune_on_dataset(self.untrained(teacher), "positive", "student")',
        WIRING,
    ),
    # Rounds
    Mutation(
        "every round starts from the initial policy",
        ROUNDS,
        "program.contrast(t, learner.positive, lesson, learner.initial, known)",
        "program.contrast(t, learner.initial, lesson, learner.initial, known)",
        WIRING,
    ),
    Mutation(
        "every round without contrast starts from the initial policy",
        ROUNDS,
        "program.imitate(t, learner.positive, lesson, learner.initial)",
        "program.imitate(t, learner.initial, lesson, learner.initial)",
        WIRING,
    ),
    Mutation(
        "the round's policy is not handed on",
        ROUNDS,
        "return replace(learner, positive=policy, pairs=so_far)",
        "return learner",
        WIRING,
    ),
    Mutation(
        "the filter is the bare base",
        ROUNDS,
        '"current": student.positive',
        '"current": base',
        WIRING,
    ),
    Mutation(
        "filter_policy is ignored",
        ROUNDS,
        "judge = by_name[sieve.policy]",
        "judge = student.positive",
        WIRING,
    ),
    Mutation(
        "the filter's scores always stand in for the reference's",
        ROUNDS,
        "scores if serves else None",
        "scores",
        WIRING,
    ),
    Mutation(
        "teachers answer as they were before the first round",
        ROUNDS,
        'program.respond(f"round-{t}", teacher.positive, "student", t, sample=sample)',
        'program.respond(f"round-{t}", teacher.initial, "student", t, sample=sample)',
        WIRING,
    ),
    Mutation(
        "the filter sees the first teacher alone",
        ROUNDS,
        "        for teacher in teachers\n",
        "        for teacher in teachers[:1]\n",
        WIRING,
    ),
    Mutation(
        "samples is ignored",
        ROUNDS,
        "for sample in range(samples)",
        "for sample in range(1)",
        WIRING,
    ),
    Mutation(
        "teachers learn from the student's first policy",
        ROUNDS,
        'chosen = program.respond(f"round-{t}", tutor.positive, "student", t)',
        'chosen = program.respond(f"round-{t}", tutor.initial, "student", t)',
        WIRING,
    ),
    Mutation(
        "teachers contrast with the student's negative",
        ROUNDS,
        "program.pair(t, teacher.name, chosen, teacher.rejected, guard, failing)",
        "program.pair(t, teacher.name, chosen, tutor.rejected, guard, failing)",
        WIRING,
    ),
    Mutation(
        "chosen and rejected are exchanged",
        PROGRAM,
        "DirectPairs(name, chosen, rejected, guard, own)",
        "DirectPairs(name, rejected, chosen, guard, own)",
        WIRING,
    ),
    Mutation(
        "the schedule is ignored",
        MACPO,
        'tutor = after if self.schedule == "sequential" else student',
        "tutor = after",
        WIRING,
    ),
    Mutation(
        "teachers never wait for the student",
        MACPO,
        'tutor = after if self.schedule == "sequential" else student',
        "tutor = student",
        WIRING,
    ),
    Mutation(
        "teachers reinforce their own answers",
        MACPO,
        'teacher if self.positives == "own" else tutor,',
        "teacher,",
        WIRING,
    ),
    Mutation(
        "the student reinforces its own answers",
        MACPO,
        '            if self.positives == "own":\n                after',
        "            if True:\n                after",
        WIRING,
    ),
    Mutation(
        "there is one round too few",
        MACPO,
        "range(1, program.config.rounds + 1)",
        "range(1, program.config.rounds)",
        WIRING,
    ),
    # The filter
    Mutation(
        "the contrast filter is scored by the positive policy",
        FILTER,
        'ScoreResponses(f"{here}/negative-scores", negative, tuple(answers))',
        'ScoreResponses(f"{here}/negative-scores", judge, tuple(answers))',
        WIRING,
    ),
    Mutation(
        "the filter does not score the rejected answers",
        FILTER,
        "scored = (*answers, rejected,",
        "scored = (*answers,",
        WIRING,
    ),
    Mutation("top_k is ignored", FILTER, "top_k=self.top_k", "top_k=1", WIRING),
    Mutation(
        "the kind of filter is ignored",
        FILTER,
        "filter=self.kind",
        'filter="perplexity"',
        WIRING,
    ),
    Mutation(
        "typical answers are the most usual of all",
        FILTER,
        "-abs(candidate.score.mean_nll - candidate.usual)",
        "-candidate.score.mean_nll - candidate.usual",
        FILTERED,
    ),
    Mutation(
        "lots are drawn by place alone",
        FILTER,
        "stable_seed(self.seed, prompt.id, place)",
        "stable_seed(self.seed, place)",
        FILTERED,
    ),
    Mutation(
        "lots of one round serve all",
        FILTER,
        'program.seed("filter", t)',
        'program.seed("filter")',
        WIRING,
    ),
    Mutation(
        "what is usual for the student now is taken for its first policy's",
        MACPO,
        'if self.filter_policy == "current" else None',
        "",
        WIRING,
    ),
    # Negatives
    Mutation(
        "decoding is pushed away from itself",
        NEGATIVES,
        "away_from=positive[name], strength",
        "away_from=policy, strength",
        WIRING,
    ),
    Mutation(
        "hard negatives and others' are mixed up",
        NEGATIVES,
        "answers[first if name == student else student]",
        "answers[student if name == student else first]",
        WIRING,
    ),
    Mutation(
        "the bad prompt is left out",
        NEGATIVES,
        '"student", 0, system=system)',
        '"student", 0)',
        WIRING,
    ),
    Mutation(
        "worst of n knows one sample",
        NEGATIVES,
        '"student", 0, sample=n)',
        '"student", 0)',
        WIRING,
    ),
    Mutation(
        "worst of n keeps the best",
        NEGATIVES,
        "max(scored, key=",
        "min(scored, key=",
        ("tests/test_negatives.py",),
    ),
    # Program
    Mutation(
        "dpo.reference is ignored",
        PROGRAM,
        "reference[agent.dpo.reference]",
        'reference["previous"]',
        WIRING,
    ),
    Mutation(
        "reference: base means the initial policy",
        PROGRAM,
        '"base": self.untrained(agent)}',
        '"base": initial}',
        WIRING,
    ),
    Mutation(
        "reference: initial means the base",
        PROGRAM,
        '"initial": initial, ',
        '"initial": self.untrained(agent), ',
        WIRING,
    ),
    Mutation(
        "dpo.start is ignored",
        PROGRAM,
        'return {"previous": current, "initial": initial}[current.agent.dpo.start]',
        "return current",
        WIRING,
    ),
    Mutation(
        "reference: previous follows dpo.start",
        PROGRAM,
        '{"previous": current, "initial": initial, "base": self.untrained(agent)}',
        '{"previous": _start(current, initial), "initial": initial, "base": self.untrained(agent)}',
        WIRING,
    ),
    Mutation(
        "dpo.anchor is ignored",
        PROGRAM,
        'return {"anchor": share, "initial": initial} if share else {}',
        "return {}",
        WIRING,
    ),
    # Going back
    Mutation(
        "factors are weighed twice",
        ANCHORING,
        "stacked_a = torch.cat([a, other_a], dim=-2).double()",
        "stacked_a = torch.cat([(1 - share) * a, share * other_a], dim=-2).double()",
        ANCHORED,
    ),
    Mutation(
        "the anchor's share is the policy's own",
        ANCHORING,
        "torch.cat([(1 - share) * b.double(), share * other_b.double()], dim=-1)",
        "torch.cat([share * b.double(), (1 - share) * other_b.double()], dim=-1)",
        ANCHORED,
    ),
    Mutation(
        "experts' columns are not taken in turns",
        ANCHORING,
        "b.reshape(b.shape[0], rank, count).permute(2, 0, 1)",
        "b.reshape(b.shape[0], count, rank).permute(1, 0, 2)",
        ANCHORED,
    ),
    Mutation(
        "what the rank costs is not told",
        ANCHORING,
        "cut += float(values[..., a.shape[-2] :].square().sum())",
        "cut += 0.0",
        TRAINING,
    ),
    Mutation(
        "the run's seed is ignored",
        PROGRAM,
        "stable_seed(self.config.seed, *parts)",
        "stable_seed(*parts)",
        SEEDS,
    ),
    Mutation(
        "all agents share one SFT seed",
        PROGRAM,
        'self.seed("sft" if role == "positive" else "negative-sft", agent.name)',
        'self.seed("sft" if role == "positive" else "negative-sft")',
        WIRING,
    ),
    Mutation(
        "positive and negative SFT share one seed",
        PROGRAM,
        'self.seed("sft" if role == "positive" else "negative-sft", agent.name)',
        'self.seed("sft", agent.name)',
        WIRING,
    ),
    Mutation(
        "every round trains with the same seed",
        PROGRAM,
        'seed = self.seed("dpo", agent.name, t)\n        name = f"round-{t}/{agent.name}/train"\n'
        "        back",
        'seed = self.seed("dpo", agent.name)\n        name = f"round-{t}/{agent.name}/train"\n'
        "        back",
        WIRING,
    ),
    Mutation(
        "test answers are drawn anew in every round",
        PROGRAM,
        'self.respond(when, policy, "test", 0, count)',
        'self.respond(when, policy, "test", t, count)',
        WIRING,
    ),
    Mutation(
        "every round samples with the same seed",
        PROGRAM,
        'parts = ("respond", policy.name, split, t, ',
        'parts = ("respond", policy.name, split, 0, ',
        WIRING,
    ),
    Mutation(
        "all agents sample with the same seed",
        PROGRAM,
        'parts = ("respond", policy.name, split, t, ',
        'parts = ("respond", split, t, ',
        WIRING,
    ),
    Mutation(
        "an agent's own dpo section is ignored",
        PROGRAM,
        "config = agent.dpo if gamma is None",
        "config = self.config.dpo if gamma is None",
        SEEDS,
    ),
    Mutation(
        "an agent's own section loses to the run's",
        "src/macpo/config/training.py",
        "return run.model_copy(update={",
        "return run if True else run.model_copy(update={",
        ("tests/test_agents.py",),
    ),
    Mutation(
        "gamma is that of the config where the method has none",
        PROGRAM,
        'agent.dpo.model_copy(update={"gamma": gamma})',
        "agent.dpo",
        OTHERS,
    ),
    # The other methods
    Mutation(
        "SPIN's sides are exchanged",
        "src/macpo/methods/spin.py",
        "naive.labels, own)",
        "own, naive.labels)",
        OTHERS,
    ),
    Mutation(
        "SPIN starts every round from SFT",
        "src/macpo/methods/spin.py",
        "student = program.contrast(t, student, pairs",
        "student = program.contrast(t, naive.student, pairs",
        OTHERS,
    ),
    Mutation(
        "self-rewarding is judged by the initial student",
        "src/macpo/methods/self_rewarding.py",
        'Grade(f"{when}/{name}/grades", student, candidates',
        'Grade(f"{when}/{name}/grades", initial, candidates',
        OTHERS,
    ),
    Mutation(
        "RLAIF compares an answer with itself",
        "src/macpo/methods/rlaif.py",
        "return Compare(name, judge, one, other,",
        "return Compare(name, judge, one, one,",
        OTHERS,
    ),
    Mutation(
        "RLCD's prompts are exchanged",
        "src/macpo/methods/rlcd.py",
        "for system in (self.positive_prompt, self.negative_prompt)",
        "for system in (self.negative_prompt, self.positive_prompt)",
        OTHERS,
    ),
    Mutation(
        "teachers are aligned on the student's labels",
        SUPERVISORS,
        'DatasetPairs("init/teacher-pairs", program.data, "teacher")',
        'DatasetPairs("init/teacher-pairs", program.data, "student")',
        OTHERS,
    ),
    Mutation(
        "aligned teachers are compared with themselves",
        SUPERVISORS,
        "Twins(_align(program, teacher, pairs), teacher, teacher.agent.dpo.beta)",
        "Twins(teacher, teacher, teacher.agent.dpo.beta)",
        OTHERS,
    ),
    Mutation(
        "the twins' sides are exchanged",
        SUPERVISORS,
        '("better", [pair.better for pair in twins]),',
        '("better", [pair.worse for pair in twins]),',
        OTHERS,
    ),
    Mutation(
        "confidence is a probability",
        "src/macpo/losses.py",
        "return 2 * ((chosen_reward - rejected_reward).sigmoid() - 0.5)",
        "return (chosen_reward - rejected_reward).sigmoid()",
        LOSSES,
    ),
    Mutation(
        "pairs are not weighed",
        "src/macpo/training/objectives.py",
        "if self.weights is not None:",
        "if self.weights is None:",
        LOSSES,
    ),
    Mutation(
        "CW-DPO forgets its weights",
        "src/macpo/methods/cw_dpo.py",
        "gamma=0.0, judgements=rewards)",
        "gamma=0.0)",
        OTHERS,
    ),
    Mutation(
        "a judge is surest of what is rejected",
        "src/macpo/training/stages.py",
        "losses.pair_confidence(chosen, rejected)",
        "losses.pair_confidence(rejected, chosen)",
        TRAINING,
    ),
    Mutation(
        "WSPO's gamma scales the target",
        "src/macpo/losses.py",
        "(gamma * logratio - target) ** 2 / tokens",
        "(logratio - gamma * target) ** 2 / tokens",
        LOSSES,
    ),
    Mutation(
        "WSPO's targets are in the order of the examples",
        "src/macpo/training/objectives.py",
        "values[list(indices)].to(sum_logprobs.device)",
        "values[: len(indices)].to(sum_logprobs.device)",
        LOSSES,
    ),
    Mutation(
        "WSPO fits rewards and not log-ratios",
        "src/macpo/methods/wspo.py",
        "self.judged(program, naive, times_beta=False)",
        "self.judged(program, naive)",
        OTHERS,
    ),
    Mutation(
        "ConG pushes by alpha itself",
        "src/macpo/methods/cong.py",
        "strength = 1 / self.alpha - 1",
        "strength = self.alpha",
        OTHERS,
    ),
    Mutation(
        "ConG's sides are exchanged",
        "src/macpo/methods/cong.py",
        "program.pair(1, name, labels, own)",
        "program.pair(1, name, own, labels)",
        OTHERS,
    ),
    Mutation(
        "weak-to-strong search measures the student's own answers",
        "src/macpo/methods/weak_to_strong_search.py",
        "program.evaluate(1, {name: student}, {name: best})",
        "program.evaluate(1, {name: student})",
        OTHERS,
    ),
    Mutation(
        "twin judges hear the student as it was",
        "src/macpo/methods/twin_judges.py",
        'program.respond(when, student, "student", t, sample=n)',
        'program.respond(when, naive.student, "student", t, sample=n)',
        OTHERS,
    ),
    Mutation(
        "the boldest of the twins decides",
        "src/macpo/judging.py",
        'fmean if self.aggregate == "mean" else min',
        'fmean if self.aggregate == "mean" else max',
        SUPERVISED,
    ),
    Mutation(
        "a log-ratio is turned",
        "src/macpo/judging.py",
        "weight * (p[id].sum_logprob - q[id].sum_logprob)",
        "weight * (q[id].sum_logprob - p[id].sum_logprob)",
        SUPERVISED,
    ),
    Mutation(
        "weights of log-ratios are ignored",
        "src/macpo/judging.py",
        "weight * (p[id].sum_logprob - q[id].sum_logprob)",
        "p[id].sum_logprob - q[id].sum_logprob",
        SUPERVISED,
    ),
    Mutation(
        "the worst of n is kept",
        "src/macpo/judging.py",
        "best.append(max(judged",
        "best.append(min(judged",
        SUPERVISED,
    ),
    Mutation(
        "unlabelled answers come in the order of their labels",
        "src/macpo/data/stages.py",
        "sorted(both, key=lambda r: r.id)[self.place]",
        "both[self.place]",
        SUPERVISED,
    ),
    Mutation(
        "the ceiling sees the teachers' half",
        "src/macpo/methods/ceiling.py",
        'program.fine_tune_on_dataset(student, "positive", "student")',
        'program.fine_tune_on_dataset(student, "positive", "teacher")',
        OTHERS,
    ),
    Mutation(
        "the ceiling's pairs are the teachers'",
        "src/macpo/methods/ceiling.py",
        'program.data, "student")',
        'program.data, "teacher")',
        OTHERS,
    ),
    Mutation(
        "confident SFT has other luck than Naive SFT",
        "src/macpo/methods/confident_loss.py",
        'program.seed("sft", student.name)',
        'program.seed("confident", student.name)',
        SEEDS,
    ),
    # Positives
    Mutation(
        "the filter prefers what perplexes most",
        FILTER,
        "return -candidate.score.mean_nll",
        "return candidate.score.mean_nll",
        FILTERED,
    ),
    Mutation(
        "the filter goes by sums and not by means",
        FILTER,
        "return -candidate.score.mean_nll",
        "return candidate.score.sum_logprob",
        FILTERED,
    ),
    Mutation(
        "contrast filters prefer what the negative policy likes",
        FILTER,
        "candidate.score.sum_logprob - candidate.negative_score.sum_logprob",
        "candidate.negative_score.sum_logprob - candidate.score.sum_logprob",
        FILTERED,
    ),
    Mutation(
        "contrast-mean is contrast-sum",
        FILTER,
        'contrast / candidate.score.tokens if filter == "contrast-mean" else contrast',
        "contrast",
        FILTERED,
    ),
    Mutation(
        "ties go to the last teacher",
        FILTER,
        "(-merit(candidates[i], filter), i))",
        "(-merit(candidates[i], filter), -i))",
        FILTERED,
    ),
    Mutation(
        "an empty rejected answer makes a pair",
        FILTER,
        "if rejected.is_empty:",
        "if False:",
        FILTERED,
    ),
    # The guard
    Mutation(
        "the guard lets everything through",
        PAIRS,
        "return not response.is_empty and response.id not in (self.reasons or ())",
        "return not response.is_empty",
        GUARD,
    ),
    Mutation(
        "refused answers of the learner are not avoided",
        PAIRS,
        "return negative if own is None or own.text == chosen.text else own",
        "return negative",
        GUARD,
    ),
    Mutation(
        "a learner avoids its own well-made answers",
        PAIRS,
        "{r.prompt_id: r for r in said if r.id in reasons}",
        "{r.prompt_id: r for r in said}",
        GUARD,
    ),
    Mutation(
        "a learner avoids what it is to say",
        PAIRS,
        "own is None or own.text == chosen.text",
        "own is None",
        GUARD,
    ),
    Mutation(
        "what is at a limit is refused",
        "src/macpo/guard.py",
        "if share > most[name]",
        "if share >= most[name]",
        GUARD,
    ),
    Mutation(
        "limits go down to zero",
        "src/macpo/guard.py",
        "return max(least, quantile(seen, self.quantile)) if seen else least",
        "return quantile(seen, self.quantile) if seen else least",
        GUARD,
    ),
    Mutation(
        "limits that are given are measured",
        "src/macpo/guard.py",
        "if given is not None:",
        "if False:",
        GUARD,
    ),
    Mutation(
        "the guard sees the prompt without its template",
        "src/macpo/guard.py",
        "seen = chat.decode(chat.encode_prompt(prompt, limit).ids)",
        "seen = prompt.messages[-1].content",
        GUARD,
    ),
    Mutation(
        "a guard changes the key of pairs without one",
        PAIRS,
        'frozenset({"guard", "own"})',
        "frozenset()",
        GUARD,
    ),
    Mutation(
        "the guard's limits come from the first teacher alone",
        MACPO,
        "candidates(program, 1, teachers, self.samples)",
        "candidates(program, 1, teachers[:1], self.samples)",
        WIRING,
    ),
    Mutation(
        "the student avoids answers of the round before where added ones are there",
        MACPO,
        'made = t if self.schedule == "simultaneous" else t - 1',
        "made = t - 1",
        WIRING,
    ),
    Mutation(
        "the teachers' chosen answers go unguarded",
        ROUNDS,
        "program.pair(t, teacher.name, chosen, teacher.rejected, guard, failing)",
        "program.pair(t, teacher.name, chosen, teacher.rejected, None, failing)",
        WIRING,
    ),
    Mutation(
        "repetition is never complete",
        "src/macpo/form.py",
        "1.0 - len(set(parts)) / len(parts)",
        "1.0 - len(set(parts)) / (len(parts) + 1)",
        FORM,
    ),
    # Pairs of other rounds, and ground truth
    Mutation(
        "accumulate is ignored",
        ROUNDS,
        "(*learner.pairs, pairs) if rules.accumulate else (pairs,)",
        "(pairs,)",
        WIRING,
    ),
    Mutation(
        "the filter's scores stand in for those of all rounds",
        ROUNDS,
        "known = scores if lesson is pairs else None",
        "known = scores",
        WIRING,
    ),
    Mutation(
        "ground truth is replayed to the student",
        MACPO,
        "teachers = [replace(teacher, labels=labels) for teacher in teachers]",
        "student = replace(student, labels=labels)",
        WIRING,
    ),
    Mutation(
        "replay is a share of the pairs and not of all",
        PAIRS,
        "round(pairs * self.share / (1 - self.share))",
        "round(pairs * self.share)",
        PAIRED,
    ),
    Mutation(
        "the same labels are replayed whatever the seed",
        PAIRS,
        "stable_seed(self.seed, place)",
        "stable_seed(place)",
        PAIRED,
    ),
    Mutation(
        "replay reads the data anew",
        "src/macpo/data/stages.py",
        'exclude={"source", "replay"}',
        'exclude={"source"}',
        PAIRED,
    ),
    # Recipes
    Mutation(
        "a recipe stands over what is said",
        "src/macpo/config/recipes.py",
        "elif isinstance(section, Mapping) and key not in section:",
        "elif isinstance(section, Mapping):",
        RECIPES,
    ),
    Mutation(
        "a recipe counts as said",
        "src/macpo/config/recipes.py",
        "getattr(config, name).__pydantic_fields_set__.discard(key)",
        "pass",
        RECIPES,
    ),
    # Losses and objectives
    Mutation(
        "the margin's sign is turned",
        "src/macpo/losses.py",
        "return beta * (chosen - rejected)",
        "return beta * (rejected - chosen)",
        LOSSES,
    ),
    Mutation(
        "the rejected reference is forgotten",
        "src/macpo/losses.py",
        "rejected = policy_rejected - reference_rejected",
        "rejected = policy_rejected",
        LOSSES,
    ),
    Mutation(
        "label smoothing is left out",
        "src/macpo/losses.py",
        "- label_smoothing * logsigmoid(-margin)",
        "- label_smoothing * logsigmoid(margin)",
        LOSSES,
    ),
    Mutation(
        "IPO has no target",
        "src/macpo/losses.py",
        "return (chosen_logratio - rejected_logratio - 1 / (2 * beta)) ** 2",
        "return (chosen_logratio - rejected_logratio) ** 2",
        LOSSES,
    ),
    Mutation(
        "SPPO's rejected target has the wrong sign",
        "src/macpo/losses.py",
        "(rejected_logratio + target) ** 2",
        "(rejected_logratio - target) ** 2",
        LOSSES,
    ),
    Mutation(
        "APO-zero raises the rejected",
        "src/macpo/losses.py",
        "+ (beta * rejected_logratio).sigmoid()",
        "- (beta * rejected_logratio).sigmoid()",
        LOSSES,
    ),
    Mutation(
        "APO-down raises the chosen",
        "src/macpo/losses.py",
        "return (beta * chosen_logratio).sigmoid() + 1 - margin.sigmoid()",
        "return 1 - (beta * chosen_logratio).sigmoid() + 1 - margin.sigmoid()",
        LOSSES,
    ),
    Mutation(
        "IPO on means divides both sides by the chosen length",
        "src/macpo/training/objectives.py",
        "rejected_logratio / lengths[:, 1]",
        "rejected_logratio / lengths[:, 0]",
        LOSSES,
    ),
    Mutation(
        "an option of DPO that came later changes every key",
        "src/macpo/config/base.py",
        "if name not in self.added\n",
        "if True\n",
        KEYS,
    ),
    Mutation(
        "a masked end of turn is left out of the SFT term, too",
        "src/macpo/training/objectives.py",
        "losses.sft(whole, tokens[:, 0])",
        "losses.sft(chosen, lengths[:, 0])",
        LOSSES,
    ),
    Mutation(
        "a masked end of turn counts among the tokens",
        "src/macpo/training/objectives.py",
        "lengths = lengths - ends",
        "lengths = lengths - 0 * ends",
        LOSSES,
    ),
    Mutation(
        "the last token of an answer that was cut off is masked",
        "src/macpo/scoring.py",
        "c[:-1] if c[-1] in stops else c",
        "c[:-1]",
        SCORING,
    ),
    Mutation(
        "the filter's scores serve where ends of turn are masked",
        PROGRAM,
        "if scores is None or masks:",
        "if scores is None:",
        WIRING,
    ),
    Mutation(
        "the SFT loss is a sum",
        "src/macpo/losses.py",
        "return -sum_logprobs / tokens",
        "return -sum_logprobs",
        LOSSES,
    ),
    Mutation(
        "the model is confident where it is not",
        "src/macpo/losses.py",
        "own_logprobs.detach() >= math.log(threshold)",
        "own_logprobs.detach() <= math.log(threshold)",
        LOSSES,
    ),
    Mutation(
        "the SFT term is left out of DPO",
        "src/macpo/training/objectives.py",
        "contrast + self.gamma * likelihood",
        "contrast",
        LOSSES,
    ),
    Mutation(
        "the reference's sides are exchanged",
        "src/macpo/training/objectives.py",
        "reference[:, 0], reference[:, 1], self.beta",
        "reference[:, 1], reference[:, 0], self.beta",
        LOSSES,
    ),
    Mutation(
        "confidence does not warm up",
        "src/macpo/training/objectives.py",
        "min(1.0, progress / self.warmup) if self.warmup else 1.0",
        "1.0",
        LOSSES,
    ),
    # Training
    Mutation(
        "SFT on pairs learns the rejected side",
        "src/macpo/training/stages.py",
        "[(p.prompt, p.chosen) for p in pairs]",
        "[(p.prompt, p.rejected) for p in pairs]",
        TRAINING,
    ),
    Mutation(
        "SFT on ground truth learns the good side always",
        "src/macpo/training/stages.py",
        "getattr(e, self.side)",
        "e.chosen",
        TRAINING,
    ),
    Mutation(
        "DPO's sides are exchanged",
        "src/macpo/training/stages.py",
        "stage.start.agent, p.prompt, (p.chosen, p.rejected))",
        "stage.start.agent, p.prompt, (p.rejected, p.chosen))",
        TRAINING,
    ),
    Mutation(
        "DPO's gamma is ignored",
        "src/macpo/training/stages.py",
        "config.gamma,\n",
        "0.2,\n",
        TRAINING,
    ),
    Mutation(
        "DPO's loss is ignored",
        "src/macpo/training/stages.py",
        "config.loss,\n",
        '"sigmoid",\n',
        TRAINING,
    ),
    Mutation(
        "DPO's label smoothing is ignored",
        "src/macpo/training/stages.py",
        "config.label_smoothing,\n",
        "0.0,\n",
        TRAINING,
    ),
    Mutation(
        "training's order does not follow the seed",
        "src/macpo/training/loop.py",
        'stable_seed(self.seed, "data")',
        "0",
        TRAINER,
    ),
    Mutation(
        "the loss is a sum over the batch",
        "src/macpo/training/loop.py",
        "loss = scored.losses.sum() / examples",
        "loss = scored.losses.sum()",
        TRAINER,
    ),
    Mutation(
        "a resumed training forgets its steps",
        "src/macpo/training/loop.py",
        "        return step\n",
        "        return 0\n",
        ("tests/training/test_resume.py",),
    ),
    # Data
    Mutation(
        "noise is ignored",
        "src/macpo/data/stages.py",
        'if name == "teacher":',
        "if False:",
        DATA,
    ),
    Mutation(
        "noise falls on the test split",
        "src/macpo/data/stages.py",
        'if name == "teacher":',
        'if name in ("teacher", "test"):',
        DATA,
    ),
    Mutation(
        "noise always falls on the same labels",
        "src/macpo/data/splits.py",
        "np.random.Philox(seed)",
        "np.random.Philox(0)",
        DATA,
    ),
    Mutation(
        "the split ignores its seed",
        "src/macpo/data/splits.py",
        "(stable_seed(seed, key), key)",
        "(stable_seed(key), key)",
        DATA,
    ),
    Mutation(
        "ground truth is paired the wrong way round",
        "src/macpo/data/stages.py",
        "                dataset_response(e.prompt, e.chosen),\n"
        "                dataset_response(e.prompt, e.rejected),\n",
        "                dataset_response(e.prompt, e.rejected),\n"
        "                dataset_response(e.prompt, e.chosen),\n",
        DATA,
    ),
    # Scoring, judging, evaluation
    Mutation(
        "a reference pass knows the chosen side alone",
        "src/macpo/scoring.py",
        "[(p.prompt, [p.chosen, p.rejected]) for p in pairs]",
        "[(p.prompt, [p.chosen, p.chosen]) for p in pairs]",
        SCORING,
    ),
    Mutation(
        "empty answers are scored",
        "src/macpo/scoring.py",
        "[r for r in responses if not r.is_empty]",
        "list(responses)",
        SCORING,
    ),
    Mutation(
        "the judge sees one order alone",
        "src/macpo/judging.py",
        "for a, b in ((one, other), (other, one))",
        "for a, b in ((one, other), (one, other))",
        JUDGING,
    ),
    Mutation(
        "the worst answer is chosen",
        "src/macpo/judging.py",
        "best = max(judged",
        "best = min(judged",
        JUDGING,
    ),
    Mutation(
        "grades count from the best",
        "src/macpo/judging.py",
        "for grade, p in enumerate(probs, 1))",
        "for grade, p in enumerate(reversed(probs), 1))",
        JUDGING,
    ),
    Mutation(
        "evaluation rewards the rejected answer",
        "src/macpo/evaluation/preference.py",
        "1.0 if chosen.mean_nll < rejected.mean_nll else",
        "1.0 if chosen.mean_nll > rejected.mean_nll else",
        EVALUATION,
    ),
    Mutation(
        "evaluation looks at the teachers' half",
        "src/macpo/evaluation/preference.py",
        'split: ClassVar[Split] = "test"',
        'split: ClassVar[Split] = "teacher"',
        EVALUATION,
    ),
    Mutation(
        "a run ends by the test split",
        "src/macpo/evaluation/collapse.py",
        "            held_out,",
        "            True,",
        COLLAPSE,
    ),
    Mutation(
        "candidates are held against those of the last round",
        "src/macpo/evaluation/collapse.py",
        "first = min(before)",
        "first = max(before)",
        COLLAPSE,
    ),
    Mutation(
        "refused candidates are those of the pairs learned from",
        "src/macpo/evaluation/pairs.py",
        "context.artifacts[(self.candidates or self.pairs).key].meta",
        "context.artifacts[self.pairs.key].meta",
        GUARD,
    ),
    Mutation(
        "a teacher's sign ends a run",
        "src/macpo/evaluation/collapse.py",
        "any(sign.ends and sign.policy == self.student for sign in signs)",
        "any(sign.ends for sign in signs)",
        COLLAPSE,
    ),
    Mutation(
        "the round that fell apart is handed out",
        "src/macpo/evaluation/collapse.py",
        "if rewards else t - 1",
        "if rewards else t",
        COLLAPSE,
    ),
    Mutation(
        "a run goes on after its end",
        "src/macpo/execution/local.py",
        "if stage.ends_run(artifact.meta):",
        "if stage.ends_run(artifact.meta) and False:",
        COLLAPSE,
    ),
    Mutation(
        "the log-ratio of chosen answers is that of rejected ones",
        "src/macpo/training/objectives.py",
        '"chosen_logratio": chosen_logratio.',
        '"chosen_logratio": rejected_logratio.',
        ("tests/training/test_trl_oracle.py",),
    ),
    # Generation
    Mutation(
        "an answering policy is pushed away from itself",
        "src/macpo/generation/local.py",
        "policies.load(speaker.away_from).model",
        "policies.load(speaker.policy).model",
        RESPOND,
    ),
    Mutation(
        "the push is away from nobody",
        "src/macpo/generation/local.py",
        "        away_from=other,\n",
        "        away_from=None,\n",
        RESPOND,
    ),
    Mutation(
        "the push has another strength",
        "src/macpo/generation/local.py",
        "strength=speaker.strength",
        "strength=0.5",
        RESPOND,
    ),
    Mutation(
        "a push makes the implausible likely",
        "src/macpo/generation/local.py",
        "plausible=speaker.plausible",
        "plausible=0.0",
        RESPOND,
    ),
    Mutation(
        "what is plausible is a probability and not a share of the likeliest",
        "src/macpo/generation/decode.py",
        "logits.amax(dim=-1, keepdim=True) + math.log(plausible)",
        "logits.logsumexp(dim=-1, keepdim=True) + math.log(plausible)",
        RESPOND,
    ),
    Mutation(
        "everybody answers as the bare base",
        "src/macpo/generation/local.py",
        "loaded = policies.load(speaker.policy)",
        'loaded = policies.load(type(speaker.policy)(speaker.policy.agent, "positive"))',
        RESPOND,
    ),
    Mutation(
        "answers are drawn with one seed whatever the stage's",
        "src/macpo/answering.py",
        "self.sampling, (self.seed,))",
        "self.sampling, (0,))",
        RESPOND,
    ),
    Mutation(
        "the answers of an unfinished shard are put with other prompts",
        "src/macpo/answering.py",
        "prompts[len(responses) : len(responses) + SHARD]",
        "prompts[:SHARD]",
        RESPOND,
    ),
    # Keys, execution, policies, publishing
    Mutation(
        "a key does not know the role of a policy",
        "src/macpo/stage.py",
        '"role": value.role, ',
        "",
        KEYS,
    ),
    Mutation(
        "a key does not know the weights of a policy",
        "src/macpo/stage.py",
        ', "weights": value.weights_key}',
        "}",
        KEYS,
    ),
    Mutation(
        "an agent is known by its name alone",
        "src/macpo/agents.py",
        '"base": self.base.digest or f"unresolved:{self.base.name}",',
        '"base": self.base.name,',
        KEYS,
    ),
    Mutation(
        "changed inputs of an artifact are accepted",
        "src/macpo/execution/single.py",
        "if artifact is not None and dict(artifact.inputs) != input_digests(stage, artifacts):",
        "if False:",
        EXECUTION,
    ),
    Mutation(
        "finished stages run again",
        "src/macpo/execution/single.py",
        "    return artifact, None\n",
        "    return None, None\n",
        EXECUTION,
    ),
    Mutation(
        "a policy trained before stands in for the one asked for",
        "src/macpo/policies.py",
        "if base.holds != policy.weights_key or base.holds is None:",
        "if base.holds is None:",
        POLICIES,
    ),
    Mutation(
        "what trains is taken for what it started from",
        "src/macpo/policies.py",
        "        base = self._base(policy.agent)\n        base.holds = None\n",
        "        base = self._base(policy.agent)\n",
        POLICIES,
    ),
    Mutation(
        "every fresh adapter is the same",
        "src/macpo/adapters.py",
        "torch.Generator().manual_seed(seed)",
        "torch.Generator().manual_seed(0)",
        POLICIES,
    ),
    Mutation(
        "an adapter is published with alpha = rank",
        "src/macpo/adapters.py",
        '        "inference_mode": True,\n',
        '        "inference_mode": True,\n        "lora_alpha": model.peft_config["default"].r,\n',
        PUBLISH,
    ),
    Mutation(
        "an engine's first answers are not compared with the policy",
        SERVED,
        "        if questions and not self.trusted:\n",
        "        if not questions and not self.trusted:\n",
        SERVING,
    ),
    Mutation(
        "an ignored adapter that does little goes unseen",
        "src/macpo/generation/served/canary.py",
        "        if self.base is not None and self.base < FITS_BETTER * self.policy:\n",
        "        if self.base is not None and self.base < -1:\n",
        SERVING,
    ),
    Mutation(
        "the token that ended an answer is lost where an engine leaves it out",
        SERVED,
        "    if drawn.reason is not None and drawn.reason in stops:\n",
        "    if drawn.reason is not None and drawn.reason in drawn.ids:\n",
        SERVING,
    ),
    Mutation(
        "answers that came before a worker died are asked again",
        "src/macpo/generation/served/engine.py",
        "                worker.send(_asking(left, drawing, stops, adapter))\n",
        "                worker.send(_asking(questions, drawing, stops, adapter))\n",
        WATCHED,
    ),
    Mutation(
        "a worker is started again without end",
        "src/macpo/generation/served/engine.py",
        "        self._restarts -= 1\n",
        "        self._restarts -= 0\n",
        WATCHED,
    ),
    Mutation(
        "adapters that share a number share an engine",
        "src/macpo/generation/served/engine.py",
        "self._known.get(adapter.id, adapter.name) != adapter.name:\n",
        "self._known.get(adapter.id, adapter.name) == '':\n",
        WATCHED,
    ),
    Mutation(
        "the engine's version is no part of the key",
        "src/macpo/backends.py",
        "        if self.engine is None:\n",
        "        if self.engine is not None or self.engine is None:\n",
        ("tests/generation/test_serving_config.py",),
    ),
    Mutation(
        "what was published before stays",
        "src/macpo/publish.py",
        "        return dict(verify(folder).fields) == fields\n",
        "        return bool(verify(folder).fields)\n",
        PUBLISH,
    ),
    # A language model as a judge
    Mutation(
        "the judge's second order counts for the other side",
        COMPARISON,
        "points = (POINTS_OF_A[first], 1 - POINTS_OF_A[second])",
        "points = (POINTS_OF_A[first], POINTS_OF_A[second])",
        JUDGE,
    ),
    Mutation(
        "orders of the judge that disagree are no tie",
        COMPARISON,
        "return self.first if self.consistent else 0.5",
        "return self.first",
        JUDGE,
    ),
    Mutation(
        "the judge sees one order twice",
        COMPARISON,
        "return Comparison(self.prompt, self.b, self.a)",
        "return Comparison(self.prompt, self.a, self.b)",
        JUDGE,
    ),
    Mutation(
        "a malformed reply of the judge is not asked again",
        "src/macpo/evaluation/judge/asking.py",
        "if len(replies) >= self._attempts else None",
        "if replies else None",
        JUDGE,
    ),
    Mutation(
        "the length-controlled win rate is that of longer answers",
        "src/macpo/evaluation/statistics.py",
        "    rate = _sigmoid(theta)\n",
        "    rate = _sigmoid(theta + phi)\n",
        STATISTICS,
    ),
    # Reward models
    Mutation(
        "Bradley and Terry's sides are exchanged",
        "src/macpo/reward/loop.py",
        "logsigmoid(chosen - rejected)",
        "logsigmoid(rejected - chosen)",
        REWARD_TRAINING,
    ),
    Mutation(
        "rewards are compared with themselves",
        "src/macpo/evaluation/reward.py",
        "scores, self._scores(subject.first), self.title)",
        "scores, scores, self.title)",
        REWARD,
    ),
    # People
    Mutation(
        "a tie is a win for the first side",
        RESULTS,
        '"tie": 0.5,',
        '"tie": 1.0,',
        PEOPLE,
    ),
    Mutation(
        "judgments of one prompt count as independent",
        RESULTS,
        "    prompts = [j.prompt_id for j in judgments]\n",
        '    prompts = [f"{j.prompt_id} {i}" for i, j in enumerate(judgments)]\n',
        PEOPLE,
    ),
    Mutation(
        "who chose the left is counted the wrong way",
        RESULTS,
        "j.verdict == j.left for j",
        "j.verdict != j.left for j",
        PEOPLE,
    ),
    Mutation(
        "what most people rejected is exported as chosen",
        "src/macpo/annotation/exporting.py",
        "if favour > 0.5 else",
        "if favour < 0.5 else",
        PEOPLE,
    ),
    Mutation(
        "alpha expects what chance would not give",
        "src/macpo/annotation/agreement.py",
        "return 1 - (n - 1) * observed / expected",
        "return 1 - n * observed / expected",
        AGREEMENT,
    ),
    Mutation(
        "the first side always stands on the left",
        "src/macpo/annotation/judgments.py",
        'return "one" if stable_seed("annotation side", pair, annotator) % 2 else "other"',
        'return "one"',
        JUDGMENTS,
    ),
    # Talking to policies
    Mutation(
        "a policy does not see its own earlier answers",
        TALK,
        'said += [Message("user", turn.user), answer]',
        'said += [Message("user", turn.user)]',
        CHAT,
    ),
    Mutation(
        "both policies see the first one's conversation",
        TALK,
        "self.messages(partner.name), Message",
        "self.messages(self.partners[0].name), Message",
        CHAT,
    ),
    Mutation(
        "another try draws with the same seed",
        TALK,
        "attempt=turn.attempt + 1",
        "attempt=turn.attempt",
        CHAT,
    ),
    Mutation(
        "a stopped answer is forgotten",
        TALK,
        'return "".join(pieces)',
        'return ""',
        CHAT,
    ),
)
