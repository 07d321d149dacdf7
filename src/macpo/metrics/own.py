"""The metrics of macpo's own evaluators and trainers, in the order of tables."""

from __future__ import annotations

from macpo.metrics.known import COUNT, NATS, PERPLEXITY, SHARE, TOKENS, Metric

OWN: tuple[Metric, ...] = (
    Metric(
        "preference_accuracy",
        "preference accuracy",
        SHARE,
        better="higher",
        gap=True,
        meaning="share of test pairs whose chosen answer has the higher mean log-probability per "
        "token",
    ),
    Metric(
        "gold_perplexity",
        "gold perplexity",
        PERPLEXITY,
        better="lower",
        meaning="perplexity of the chosen answers of the test pairs, over all their tokens",
    ),
    Metric(
        "validation_accuracy",
        "accuracy on validation pairs",
        SHARE,
        better="higher",
        meaning="preference accuracy on the pairs of `data.splits.validation`",
    ),
    Metric(
        "validation_perplexity",
        "perplexity of validation answers",
        PERPLEXITY,
        better="lower",
        meaning="perplexity of the chosen answers of `data.splits.validation`, by which "
        "`evaluation.stop_on_collapse` decides",
    ),
    Metric(
        "answer_tokens",
        "tokens in an answer",
        TOKENS,
        meaning="mean length of its answers to test prompts",
    ),
    Metric(
        "answers_finished",
        "answers that ended",
        SHARE,
        shown="comparisons",
        meaning="share of its answers that ended by themselves",
    ),
    Metric(
        "answer_repetition",
        "repetition in an answer",
        SHARE,
        meaning="mean share of an answer's token 4-grams that stood earlier in the same answer "
        "(seq-rep-4, arXiv 1908.04319)",
    ),
    Metric(
        "answer_copying",
        "copying from the prompt",
        SHARE,
        meaning="mean share of an answer's token 4-grams that stand in its prompt: in earlier "
        "turns or in a system prompt of the chat template",
    ),
    Metric(
        "distinct_1",
        "distinct words",
        SHARE,
        shown="comparisons",
        meaning="share of the words of all its answers to test prompts that differ",
    ),
    Metric(
        "distinct_2",
        "distinct word pairs",
        SHARE,
        meaning="share of the pairs of neighbouring words of all its answers that differ",
    ),
    Metric(
        "compression_ratio",
        "compression of the answers",
        shown="comparisons",
        meaning="how many times smaller all its answers get by deflate: more is less diverse "
        "(arXiv 2403.00553)",
    ),
    Metric(
        "self_bleu",
        "self-BLEU",
        SHARE,
        meaning="mean BLEU of an answer against all others: more is less diverse (arXiv "
        "1802.01886); only with the option `self_bleu` of `answers`",
    ),
    Metric(
        "pair_likeness",
        "likeness of chosen and rejected",
        SHARE,
        shown="comparisons",
        meaning="share of words that chosen and rejected answers of the round's pairs have in "
        "common",
    ),
    Metric(
        "longer_chosen",
        "chosen answers that are longer",
        SHARE,
        shown="comparisons",
        meaning="share of the round's pairs whose chosen answer has more words; equal count half",
    ),
    Metric(
        "refused_candidates",
        "candidates that the guard refused",
        SHARE,
        better="lower",
        shown="comparisons",
        meaning="share of the answers that might have become a round's chosen ones that "
        "`method.guard` refused",
    ),
    Metric(
        "kl_initial",
        "KL to round 0",
        NATS,
        meaning="mean of log pi(y) - log pi_0(y) over its answers, pi_0 the same agent before the "
        "first round; by the evaluator `kl`",
    ),
    Metric(
        "kl_initial_per_token",
        "KL to round 0 per token",
        NATS,
        shown="comparisons",
        meaning="the same per token",
    ),
    Metric(
        "reward",
        "reward",
        better="higher",
        gap=True,
        meaning="mean score of its answers by a reward model",
    ),
    Metric(
        "reward_se",
        "standard error of the reward",
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "reward_gain",
        "reward gained",
        better="higher",
        shown="comparisons",
        meaning="mean difference of rewards, prompt by prompt, to the same agent before the first "
        "round",
    ),
    Metric(
        "reward_gain_se",
        "standard error of the reward gained",
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "reward_win_rate",
        "win rate by reward",
        SHARE,
        better="higher",
        meaning="share of prompts whose answer has a higher reward than the same agent's before "
        "the first round; a tie counts half",
    ),
    Metric(
        "reward_win_rate_se",
        "standard error of the win rate by reward",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "rewards_cut",
        "answers cut for the reward model",
        SHARE,
        better="lower",
        shown="named",
        meaning="share of answers of which the reward model did not see the end",
    ),
    Metric(
        "judge_win_rate",
        "win rate by the judge",
        SHARE,
        better="higher",
        meaning="mean of both orders: 1 for a win, 0.5 for a tie; against the same agent before "
        "the first round, or against another run",
    ),
    Metric(
        "judge_win_rate_se",
        "standard error of the win rate by the judge",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "judge_win_rate_strict",
        "win rate by the judge, strict",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="orders that disagree are a tie, and a tie counts half",
    ),
    Metric(
        "judge_win_rate_strict_se",
        "standard error of the strict win rate",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "judge_win",
        "won by the judge",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="share of pairs won in both orders",
    ),
    Metric(
        "judge_tie",
        "tied by the judge",
        SHARE,
        shown="comparisons",
        meaning="share of pairs that tie, or on which the orders disagree",
    ),
    Metric(
        "judge_lose",
        "lost by the judge",
        SHARE,
        better="lower",
        shown="comparisons",
        meaning="share of pairs lost in both orders",
    ),
    Metric(
        "judge_win_rate_lc",
        "length-controlled win rate",
        SHARE,
        better="higher",
        meaning="win rate by the judge at equal lengths, by a logistic fit after AlpacaEval 2 "
        "(arXiv 2404.04475)",
    ),
    Metric(
        "judge_win_rate_lc_se",
        "standard error of the length-controlled win rate",
        SHARE,
        shown="named",
        meaning="over prompts, by the sandwich",
    ),
    Metric(
        "judge_length_coefficient",
        "the judge's taste for length",
        "logits",
        shown="comparisons",
        meaning="coefficient of length in that fit: above 0 where longer answers win",
    ),
    Metric(
        "judge_win_rate_matched",
        "length-matched win rate",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="win rate by the judge among pairs of which neither answer is longer by more than "
        "a quarter",
    ),
    Metric(
        "judge_win_rate_matched_se",
        "standard error of the length-matched win rate",
        SHARE,
        shown="named",
        meaning="over prompts",
    ),
    Metric(
        "judge_consistency",
        "the judge's consistency",
        SHARE,
        better="higher",
        meaning="share of pairs on which both orders came to the same",
    ),
    Metric(
        "judge_unjudged",
        "pairs without a verdict",
        COUNT,
        better="lower",
        shown="comparisons",
        meaning="pairs on which the judge gave no verdict that can be read, in one order or both",
    ),
    Metric(
        "judge_calls",
        "replies of the judge",
        COUNT,
        shown="named",
        meaning="malformed ones included",
    ),
    Metric(
        "judge_tokens_in",
        "tokens that the judge read",
        COUNT,
        shown="named",
        meaning="as its server counts them",
    ),
    Metric(
        "judge_tokens_out", "tokens that the judge wrote", COUNT, shown="named", meaning="likewise"
    ),
    Metric(
        "judge_cost",
        "cost of the judge",
        "money",
        better="lower",
        shown="named",
        meaning="by the prices that the config gives",
    ),
    Metric(
        "exact_accuracy",
        "answers with the right number",
        SHARE,
        better="higher",
        gap=True,
        meaning="share of its answers whose final number is that of the test prompt's chosen one; "
        "by the evaluator `exact-answer`",
    ),
    Metric(
        "answers_extracted",
        "answers with a number",
        SHARE,
        shown="comparisons",
        meaning="share of its answers that hold a number at all",
    ),
    Metric(
        "constraints_met",
        "constraints met",
        SHARE,
        better="higher",
        gap=True,
        meaning="mean share of the constraints of a prompt that its answer meets; by the evaluator "
        "`constraints`",
    ),
    Metric(
        "constraints_all_met",
        "answers that meet all constraints",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="share of its answers that meet all constraints of their prompts",
    ),
    Metric(
        "bbq_accuracy",
        "BBQ accuracy",
        SHARE,
        better="higher",
        gap=True,
        meaning="share of questions whose right option is the most probable one per token; by the "
        "evaluator `bbq`",
    ),
    Metric(
        "bbq_accuracy_ambiguous",
        "BBQ accuracy, ambiguous",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="the same where the context does not tell",
    ),
    Metric(
        "bbq_accuracy_disambiguated",
        "BBQ accuracy, disambiguated",
        SHARE,
        better="higher",
        shown="comparisons",
        meaning="the same where it does",
    ),
    Metric(
        "bbq_bias_ambiguous",
        "BBQ bias, ambiguous",
        meaning="s_AMB of arXiv 2110.08193: 0 is no bias, 1 always with the stereotype, -1 against",
    ),
    Metric(
        "bbq_bias_disambiguated",
        "BBQ bias, disambiguated",
        meaning="s_DIS of the same",
    ),
    Metric(
        "train_loss",
        "training loss",
        NATS,
        shown="named",
        meaning="mean loss over the round's last steps",
    ),
    Metric(
        "train_margin",
        "training margin",
        NATS,
        shown="named",
        meaning="mean DPO margin over the round's last steps: beta times the log-ratio of chosen "
        "and rejected, against the reference",
    ),
    Metric(
        "train_chosen_logratio",
        "log-ratio of chosen answers",
        NATS,
        shown="named",
        meaning="mean of log pi(y) - log ref(y) over chosen answers in the round's last steps, "
        "sums over their tokens; it often falls, see docs/evaluation.md",
    ),
    Metric(
        "train_rejected_logratio",
        "log-ratio of rejected answers",
        NATS,
        shown="named",
        meaning="the same of rejected answers",
    ),
)
