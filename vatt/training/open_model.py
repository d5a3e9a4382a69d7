"""Contrastive fine-tuning of open models of others as a Lightning system."""

from typing import Any

from torch import nn

from vatt.config.open_model import OpenModelConfig
from vatt.errors import CheckpointError, UserError
from vatt.network.contrastive_loss import LossConfig
from vatt.open_models.loading import load_open_model
from vatt.open_models.network import OpenModel, Scale
from vatt.open_models.settings import architecture_of
from vatt.training.optim import OptimizerConfig, ScheduleConfig
from vatt.training.pretrain import PretrainModule, check_spaces, without_absent
from vatt.training.sharding import whole

# of what a checkpoint says of its network, what must be the same in a run that goes on
DECISIVE = ("modalities", "architecture", "head", "lora")


class OpenModelModule(PretrainModule):
    """Fine-tunes an open model by contrasting its modalities over the batches of all ranks.

    Args:
        model: Settings of the model; `vatt fit` reads them from the files of `init_from`.
        loss: Contrastive loss. Where it names no temperature, training starts from that of the
            model, if it has one, and from its bias in the sigmoid form.
        optimizer: Optimiser and its settings.
        schedule: Learning rate over the run.
        init_from: Folder or hub id of a whole model, which `vatt fit` puts into `model`.
        micro_batch_size: Number of clips per rank whose activations are in memory at a time; see
            `PretrainModule`.
        checkpoint_activations: Whether to store only the inputs of the model's blocks, and compute
            the rest again in the backward pass, as transformers does it.

    Raises:
        UserError: the model does not exist or is of an unknown kind, or the loss does not fit it.
    """

    network: OpenModel  # type: ignore[assignment]  # with what this training uses of VATT

    def __init__(
        self,
        model: OpenModelConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        init_from: str | None = None,
        micro_batch_size: int | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        if init_from is not None and init_from != model.source:
            raise UserError(
                f"init_from is {init_from}, but model.source {model.source}: leave that out"
            )
        if optimizer.layer_decay != 1:
            raise UserError(
                "optimizer.layer_decay is for our models: set it to 1, and give lr_factors"
            )
        sources = {"": model.source} if model.towers is None else model.towers.sources
        self._architecture = {name: architecture_of(str(one)) for name, one in sources.items()}
        super().__init__(
            model,  # type: ignore[arg-type]
            loss,
            optimizer,
            schedule,
            micro_batch_size=micro_batch_size,
            checkpoint_activations=checkpoint_activations,
        )
        if loss.temperature is None:
            own = self.network.scales()
            factors = {pair: scale.factor for pair, scale in own.items()}
            biases = {p: scale.bias for p, scale in own.items() if scale.bias is not None}
            self.loss.start_from(factors, biases)

    def possible_loss(self, model: Any, loss: LossConfig) -> LossConfig:
        """The loss without pairs of modalities that the model lacks."""
        loss = without_absent(model.modalities, loss, warns=False)
        if model.head is not None:
            check_spaces(model.head, loss)
        return loss

    def build_network(self, model: Any) -> Any:
        """Network around the open model, with its pre-trained weights."""
        return load_open_model(model)

    def setup(self, stage: str) -> None:
        """Sets up recomputation of activations, if configured."""
        if stage == "fit" and self.checkpoint_activations:
            for part in self.network.modules():
                if getattr(part, "supports_gradient_checkpointing", False):
                    _recompute(part)

    def describe_network(self) -> dict[str, Any]:
        """Settings, and the architecture of the model as transformers describes it."""
        return {**self.network.config.to_dict(), "architecture": self._architecture}

    def check_network(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network.

        Raises:
            CheckpointError: modalities, architecture, head or adapters differ.
        """
        own = self.describe_network()
        for name in DECISIVE:
            if saved.get(name) != own[name]:
                raise CheckpointError(f"the checkpoint holds another model: its {name} differs")

    def trained_scales(self) -> dict[str, Scale]:
        """Scales and biases of the loss, by name of the pair of modalities; a collective."""
        factors = whole(self.loss.log_scale.detach()).exp().tolist()
        biases = [None] * len(factors)
        if self.loss.bias is not None:
            biases = whole(self.loss.bias.detach()).tolist()
        pairs = zip(self.loss.pairs, factors, biases, strict=True)
        return {pair: Scale(factor, bias) for pair, factor, bias in pairs}


def _recompute(part: nn.Module) -> None:
    """Recomputation of a transformers model, in the variant that allows hooks (DDP, FSDP2)."""
    model: Any = part
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
