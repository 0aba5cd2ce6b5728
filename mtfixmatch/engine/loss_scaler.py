"""The loss scaler of float16, whose gradients underflow; other types need none."""

from typing import Any

import torch


class LossScaler(torch.amp.GradScaler):
    """PyTorch's scaler, which waits for a GPU once a step and counts the steps that it skips.

    It skips a step whose gradients overflow, while it searches its scale.

    Attributes:
        skipped: number of skipped steps of the run, resumes included.
    """

    def __init__(self, device: str, *, enabled: bool, **kwargs: Any):
        """Set the device of the scale; without `enabled` the scaler does nothing."""
        super().__init__(device, enabled=enabled, **kwargs)
        self.skipped = 0
        self._known = super().get_scale()

    def get_scale(self) -> float:
        """Return the scale of this step, without waiting for the device; 1 if not enabled."""
        return self._known

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Adapt the scale after a step, and count the step if it was skipped."""
        super().update(new_scale)
        before, self._known = self._known, super().get_scale()
        self.skipped += int(self._known < before)

    def scalars(self) -> dict[str, float]:
        """Return the figures for the log; none if not enabled."""
        if not self.is_enabled():
            return {}
        return {"loss_scaler/scale": self._known, "loss_scaler/skipped_steps": self.skipped}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the number of skipped steps; {} if not enabled."""
        state = super().state_dict()
        return state | {"skipped": self.skipped} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`; it also loads the state of PyTorch's scaler."""
        super().load_state_dict(state_dict)
        self.skipped = state_dict.get("skipped", 0)
        self._known = super().get_scale()
