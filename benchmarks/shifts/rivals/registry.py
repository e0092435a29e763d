"""All rivals by name. What they do with labels and pictures their modules say."""

from collections.abc import Mapping

from benchmarks.shifts.context import Method
from benchmarks.shifts.rivals.eata import eata
from benchmarks.shifts.rivals.finetuned import finetuned, finetuned_nominal, surgical
from benchmarks.shifts.rivals.lp_ft import lp_ft
from benchmarks.shifts.rivals.picked import picked, picked_bn, picked_bn_head, picked_head
from benchmarks.shifts.rivals.probe import probe
from benchmarks.shifts.rivals.roid import roid
from benchmarks.shifts.rivals.sar import sar
from benchmarks.shifts.rivals.t3a import t3a
from benchmarks.shifts.rivals.tent import tent

RIVALS: Mapping[str, Method] = {
    "picked": picked,
    "picked_bn": picked_bn,
    "picked_head": picked_head,
    "picked_bn_head": picked_bn_head,
    "probe": probe,
    "finetune": finetuned,
    "finetune_nominal": finetuned_nominal,
    "lp_ft": lp_ft,
    "surgical": surgical,
    "tent": tent,
    "eata": eata,
    "sar": sar,
    "roid": roid,
    "t3a": t3a,
}
# Rivals that learn from no label answer alike whatever number of pictures is labelled.
WITHOUT_LABELS = ("eata", "sar", "roid", "t3a")
TRAINED = ("finetune", "finetune_nominal", "lp_ft", "surgical", "tent", "eata", "sar", "roid")  # by gradients
# The suite runs these on request: `ladder_full` is `ladder` by another name, and nothing else here was tuned at 32
# pixels.
ON_REQUEST = ("ladder_full", "probe", "finetune_nominal", "lp_ft", "eata", "sar", "roid", "t3a")
