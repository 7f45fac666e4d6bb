"""Principal components of wide branches: fewer features reduce overfitting of a head on few sessions."""

from collections.abc import Sequence

import torch
from torch import nn


class PrincipalComponents(nn.Module):
    """Whitened principal components of every branch wider than `components`; the others are unchanged.

    Args:
        dims: features per branch, in the order of the columns.
        components: largest number per branch.
    """

    def __init__(self, dims: Sequence[int], components: int) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.widths = tuple(min(dim, components) for dim in dims)
        """Features per branch after the reduction."""
        for branch, (dim, width) in enumerate(zip(self.dims, self.widths, strict=True)):
            if width < dim:
                self.register_buffer(f"components_{branch}", torch.eye(dim, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce standardised features (..., D); absent ones are zero before and after."""
        parts = torch.split(x, list(self.dims), dim=-1)
        return torch.cat([self._reduced(branch, part) for branch, part in enumerate(parts)], dim=-1)

    def _reduced(self, branch: int, part: torch.Tensor) -> torch.Tensor:
        if self.widths[branch] == self.dims[branch]:
            return part
        components: torch.Tensor = self.get_buffer(f"components_{branch}")
        return part @ components

    def fit(self, x: torch.Tensor, present: torch.Tensor) -> None:
        """Fit each branch on those of the standardised rows x (N, D) where it is present, by (N, M) bool."""
        from sklearn.decomposition import PCA  # inference does not need it

        for branch, part in enumerate(torch.split(x, list(self.dims), dim=1)):
            rows = part[present[:, branch]]
            width = min(self.widths[branch], len(rows))
            if self.widths[branch] < self.dims[branch] and width:
                found = PCA(width, whiten=True, random_state=0).fit(rows.double().cpu().numpy())
                scale = found.explained_variance_.clip(1e-12) ** -0.5
                components = self.get_buffer(f"components_{branch}").zero_()
                components[:, :width] = torch.from_numpy(found.components_.T * scale)
