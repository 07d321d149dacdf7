"""MACPO, the methods that it is compared with, and its ablations: each a short program.

| module | method | paper |
|---|---|---|
| macpo | MACPO and its ablations | arXiv 2410.07672 |
| naive_sft | SFT on weak labels | arXiv 2312.09390 |
| confident_loss | SFT that may overrule weak labels | arXiv 2312.09390 |
| ceiling | the student on ground truth | |
| spin | self-play fine-tuning | arXiv 2401.01335 |
| self_rewarding | the student judges its own answers | arXiv 2401.10020 |
| rlaif | the teachers compare the student's answers | arXiv 2309.00267 |
| rlcd | pairs from contrasting prompts | arXiv 2307.12950 |
| ws_dpo | aligned teachers label pairs | arXiv 2409.08813 |
| cw_dpo | the same, weighed by how sure they are | arXiv 2603.04968 |
| wspo | the student changes as alignment has changed the teachers | arXiv 2410.18640 |
| cong | aligned teachers' contrastive decoding, SFT and DPO | arXiv 2510.07884 |
| weak_to_strong_search | aligned teachers choose the best of n answers | arXiv 2405.19262 |
| twin_judges | teachers' twins judge the student's own answers | our own |

A method is one class in one file: its options, which a config's `method` section sets, and
`lay_out`, a short program over the calls of `program`. `docs/own-method.md` shows how to add one
from outside.
"""

from macpo.methods.method import Method, register_method

__all__ = ["Method", "register_method"]
