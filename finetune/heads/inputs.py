"""The inputs of the two-stream model with task heads, for one batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class TaskInputs:
    """Inputs of the model for one batch.

    Rows of the image stream: the image token (row 0), the regions, the image's other given boxes, the candidates.
    If examples have several images (NLVR2), the batch rows are those of the first example, then those of the second,
    and so on; in retrieval training, the pairs of an example are its rows.

    Attributes:
        input_ids: int64 (B, L).
        text_mask: bool (B, L).
        features: (B, R, D).
        locations: (B, R, 5).
        image_mask: bool (B, R).
        task_ids: int64 (B,), None for a model without task tokens.
        candidates: number of candidates, the last of the R rows.
        text_count, image_count: number of true values of the masks, if known.
        sample_keys: int64 (B,), seeds of dropout (see TwoStream.forward).
        image_positions: int64 (R,), positions for dropout (see TwoStream.forward).
    """

    input_ids: Tensor
    text_mask: Tensor
    features: Tensor
    locations: Tensor
    image_mask: Tensor
    task_ids: Tensor | None = None
    candidates: int = 0
    text_count: int | None = None
    image_count: int | None = None
    sample_keys: Tensor | None = None
    image_positions: Tensor | None = None
