"""Training of the `countdown` models on rows of one problem each, alone or many in one sequence."""

import copy
from collections.abc import Mapping

import lightning as L  # noqa: TID253
import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID
from noiseworks.bench.testbeds.optimizers import muon_with_adamw
from noiseworks.core.checks import check_finite
from torch import Tensor, nn

PROMPT, ANSWER = 7, 16  # tokens of a row: the question, and the answer, filled with ends
PACKS = (1, 4, 16, 32, 64)  # problems in one sequence
PACK_SHARES = (0.7, 0.12, 0.1, 0.05, 0.03)


class TextTrainer(L.LightningModule):
    """Trains one of the three models; the averaged weights are `average`.

    A batch holds `ids`, int64 `[B, PROMPT + ANSWER]`. In some batches many problems stand in one sequence, as
    in prompts with examples, so that models find the question at hand in long contexts. What is masked, and
    how rows are packed, is drawn from (seed, step).

    Args:
        model: The model.
        shift: 0 where row i of the logits predicts token i, 1 where it predicts token i + 1.
        causal: Whether the model predicts the next token and nothing is masked.
        learning_rate: Of both optimisers, set anew in every step by the budget.
        ema_decay: Largest decay of the averaged weights.
        seed: Of masks and packs.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shift: int = 0,
        causal: bool = False,
        learning_rate: float = 1e-3,
        ema_decay: float = 0.998,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.shift, self.causal = model, shift, causal
        self.learning_rate, self.ema_decay, self.seed = learning_rate, ema_decay, seed
        self.average = copy.deepcopy(model).eval().requires_grad_(False)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Take one step and return the loss of its batch.

        Raises:
            NonFiniteError: When it is not a number.
        """
        optimizers = self.optimizers()
        step = self.global_step // len(optimizers)
        rng = np.random.default_rng([self.seed, step, self.global_rank])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        ids = batch["ids"].long()
        pack = int(rng.choice(PACKS, p=PACK_SHARES))
        while len(ids) % pack:
            pack //= 2
        loss = self.causal_loss(ids, pack) if self.causal else self.masked_loss(ids, pack, generator)
        check_finite("loss", loss, step)
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1 - decay)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss.detach()

    def masked_loss(self, ids: Tensor, pack: int, generator: torch.Generator) -> Tensor:
        """Return the mean over rows of the cross-entropy of masked answer tokens, divided by their number.

        Of each row's answer exactly k tokens are masked, k uniform in 1 … ANSWER: the estimator of the bound
        with the smaller variance (Nie et al. 2025, LLaDA, appendix B).

        Args:
            ids: Rows, int64 [B, PROMPT + ANSWER].
            pack: Rows in one sequence, a divisor of B.
            generator: Source of the masks.
        """
        rows = len(ids)
        count = torch.randint(1, ANSWER + 1, (rows, 1), generator=generator)
        order = torch.rand(rows, ANSWER, generator=generator).argsort(dim=1).argsort(dim=1)
        masked = F.pad(order < count, (PROMPT, 0)).to(ids.device)
        noisy = ids.masked_fill(masked, MASK_ID).reshape(rows // pack, -1)
        logits = self.model(noisy, attention_mask=(noisy != PAD_ID).long()).logits
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        logits = logits.reshape(rows, ids.shape[1], -1)[masked].float()
        per_token = F.cross_entropy(logits, ids[masked], reduction="none")
        weight = (1 / count.to(ids.device)).expand(-1, ids.shape[1])[masked]
        return (per_token * weight).sum() / rows

    def causal_loss(self, ids: Tensor, pack: int) -> Tensor:
        """Return the mean cross-entropy of answer tokens up to the first end, each from what stands before.

        Args:
            ids: Rows, int64 [B, PROMPT + ANSWER].
            pack: Rows in one sequence, a divisor of B.
        """
        ends = (ids == EOS_ID).cumsum(dim=1)
        wanted = (ends <= 1) & ((ends == 0) | (ids == EOS_ID))
        wanted[:, :PROMPT] = False
        packed = ids.reshape(len(ids) // pack, -1)
        logits = self.model(packed, attention_mask=(packed != PAD_ID).long()).logits[:, :-1]
        wanted = wanted.reshape(packed.shape)[:, 1:]
        return F.cross_entropy(logits[wanted].float(), packed[:, 1:][wanted])

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices of the blocks, and AdamW for the rest."""
        ends = {id(self.model.get_input_embeddings().weight), id(self.model.get_output_embeddings().weight)}
        inner = [p for p in self.model.parameters() if p.ndim == 2 and id(p) not in ends]
        chosen = {id(p) for p in inner}
        outer = [p for p in self.model.parameters() if id(p) not in chosen]
        return muon_with_adamw(inner, outer, self.learning_rate)

    def train(self, mode: bool = True) -> "TextTrainer":
        """Set the mode; the averaged weights stay in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self
