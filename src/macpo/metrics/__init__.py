"""What is known of each metric: its title, unit, which way is better, how it is written.

Every table, figure and file asks here, so that a metric is called and written alike everywhere:

    metric("preference_accuracy").format(0.625)     # '62.5 %'
    metric("pgr_oracle_score").title                # 'PGR of score (oracle)'
    metric("my_own")                                # nobody registered it: told from its name

A plugin registers the metrics that its evaluators write (see `macpo.plugins`):

    register_metric(Metric("politeness", "politeness", "share", better="higher"))

Names with a prefix of `PREFIXES` need no registration: what is known of them follows from the
metric that is named after the prefix. Nor do names with a label, such as `reward[mine]`.
"""

from macpo.metrics.known import (
    COUNT,
    METRICS,
    NATS,
    NUMBER,
    PERPLEXITY,
    PGR,
    PREFIXES,
    RANGES,
    SHARE,
    TOKENS,
    Better,
    Metric,
    Shown,
    derive,
    in_order,
    is_registered,
    metric,
    register_metric,
    registered,
)
from macpo.metrics.own import OWN

__all__ = [
    "COUNT",
    "METRICS",
    "NATS",
    "NUMBER",
    "PERPLEXITY",
    "PGR",
    "PREFIXES",
    "RANGES",
    "SHARE",
    "TOKENS",
    "Better",
    "Metric",
    "Shown",
    "derive",
    "in_order",
    "is_registered",
    "metric",
    "register_metric",
    "registered",
]

for _metric in OWN:
    register_metric(_metric)
