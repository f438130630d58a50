"""A small backbone for bird's-eye views; any module that makes a `Scene` can take its place."""

import torch
import torch.nn.functional as F
from noiseworks.diffusiondrive.decoder import HEADS, Scene
from torch import Tensor, nn

AGENTS = 12
STATUS = 8  # command (4), velocity (2), acceleration (2)


class ViewEncoder(nn.Module):
    """Convolutions to 1/8 of the view, tokens with the status, and queries for the ego and twelve agents.

    Args:
        channels: Of the view.
        width: C.
        size: Pixels of the view's side, a multiple of 8.
    """

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, stride=2, padding=1), nn.BatchNorm2d(width // 2), nn.ReLU()
        )
        self.fine = nn.Sequential(
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        tokens = (size // 8) ** 2 + 1
        self.status = nn.Linear(STATUS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.queries = nn.Parameter(0.02 * torch.randn(1 + AGENTS, width))
        layer = nn.TransformerDecoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.merge = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.LayerNorm(width))
        self.agent_class, self.agent_box = nn.Linear(width, 1), nn.Linear(width, 5)

    def forward(self, view: Tensor, status: Tensor) -> Scene:
        """Return the scene of views [B, channels, size, size] in [-1, 1] and status [B, 8]."""
        fine = self.fine(self.stem(view.contiguous(memory_format=torch.channels_last)))
        coarse = self.coarse(fine)
        tokens = torch.cat((coarse.flatten(2).mT, self.status(status)[:, None]), dim=1) + self.positions
        queries = self.decoder(self.queries.expand(len(view), -1, -1), tokens)
        seen = tokens[:, :-1].mT.unflatten(2, coarse.shape[2:])
        seen = F.interpolate(seen, fine.shape[2:], mode="bilinear", align_corners=False)
        merged = self.merge(torch.cat((seen, fine), dim=1).permute(0, 2, 3, 1))
        return Scene(merged.permute(0, 3, 1, 2), queries[:, 1:], queries[:, :1])

    def agents(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return whether each agent query sees one (logits [B, A]), and its box in metres [B, A, 5]."""
        return self.agent_class(scene.agents)[..., 0], self.agent_box(scene.agents)
