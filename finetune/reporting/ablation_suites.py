"""The rows of the paper's ablations by suite, as changes to the full method."""

from dataclasses import dataclass, field

from finetune.balancing import METHODS
from finetune.evaluation.paper_results import WITHOUT_G4


@dataclass(frozen=True)
class Row:
    """A row of an ablation table.

    flags: of finetune.mt; without_g4: train without the tasks of G4; pretraining: flags of the row's own pretraining
    run, None to use the common one; pretrained: false for a row that starts from a BERT or random weights with the same
    model configuration.
    """

    flags: dict = field(default_factory=dict)
    without_g4: bool = False
    pretraining: dict | None = None
    pretrained: bool = True


NOT_PRETRAINED = Row(pretrained=False)

# Suite -> rows, by their names in the paper's tables; the first row is the full method.
SUITES: dict[str, dict[str, Row]] = {
    "table10": {
        "token per dataset": Row(),
        "token per head": Row({"task_token": "head"}),
        "no task token": Row({"task_token": "none"}),
        "no stop-and-go": Row({"regime": "round_robin"}),
        "curriculum": Row({"regime": "curriculum"}),
        "anti-curriculum": Row({"regime": "anti_curriculum"}),
        "vanilla multitask": Row({"regime": "round_robin", "task_token": "none"}),
        "no CC pretraining": NOT_PRETRAINED,
    },
    "table11": {gap: Row({"gap": int(gap)}) for gap in ("4", "1", "8", "16")},
    "table12": {
        "AT without G4": Row(without_g4=True),
        "AT": Row(),
        "AT without G4, no task token": Row({"task_token": "none"}, without_g4=True),
        "AT without G4, no stop-and-go": Row({"regime": "round_robin"}, without_g4=True),
    },
    "pretraining": {
        "aligned pairs, overlap": Row(pretraining={}),
        "all pairs, overlap": Row(pretraining={"aligned_only": False}),
        "aligned pairs, chosen alone": Row(pretraining={"overlap": 2.0}),
        "all pairs, chosen alone": Row(pretraining={"aligned_only": False, "overlap": 2.0}),
        "no pretraining": NOT_PRETRAINED,
    },
    # Screened first (reporting.screening): the table has the best of these rows.
    "interference": {
        "a step per task": Row(),
        **{name: Row({"balance": name}) for name in METHODS},
    },
}

PAPER_TABLES = {"table10": "table10_ablations", "table11": "table11_stop_and_go_gap", "table12": WITHOUT_G4}
