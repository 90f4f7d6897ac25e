"""Pre-train the nano detector on generated scenes and licensed photographs.

    python python/tools/pretrain_nano.py --photos DATA/pretrain --work_dir runs/nano --steps 20000 --decay_steps 4000

The state is saved often; the same command resumes from it. ``--initial_model nano`` goes on from the shipped model.
The learning rate is constant after a warm-up and falls to zero over the last ``--decay_steps`` steps, so a run may be
stopped early by resuming with fewer ``--steps``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from distillation import EfficientNetLite, FeatureDistillation
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import BertConfig
from transformers.modeling_outputs import BackboneOutput

from sdpt_ext.data.atomic import replacing, write_json
from sdpt_ext.data.pretrain import Photographs, PretrainStream, ShapeScenes, StreamOptions
from sdpt_ext.data.shapes.scenes import SceneOptions
from sdpt_ext.models import GlipConfig, GlipForObjectDetection, GlipProcessor
from sdpt_ext.models.glip.assignment import assign_atss
from sdpt_ext.models.glip.head import HeadOutput, flatten_levels
from sdpt_ext.models.loading import load_model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="folder of photographs with labelled_categories; without it, scenes only")
    parser.add_argument("--photo_ratio", type=float, default=0.6, help="share of photographs (default: %(default)s)")
    parser.add_argument("--work_dir", type=Path, required=True, help="state, log and the exported model")
    parser.add_argument("--initial_model", help="nano, or a folder with its like, to go on from (default: none)")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--warmup_steps", type=int, default=300)
    parser.add_argument("--decay_steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--word_weight", type=float, default=3.0, help="weight of the losses that compare words")
    parser.add_argument(
        "--distillation_weight", type=float, default=0.0, help="weight of the ImageNet teacher's features (default: 0)"
    )
    parser.add_argument("--ema_decay", type=float, default=0.998)
    parser.add_argument(
        "--short_sides", type=int, nargs="+", help="image sizes to draw from (default: the processor's)"
    )
    parser.add_argument("--veiled", type=float, default=0.3, help="share of pictures in coloured haze (default: 0.3)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--workers", type=int, default=2, help="processes that make batches")
    parser.add_argument("--threads", type=int, help="threads of the model (default: all)")
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def learning_rate_factor(step: int, warmup: int, steps: int, decay: int) -> float:
    """Linear warm-up, plateau, linear decay to zero over the last ``decay`` steps."""
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / decay))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices alone: not on norms, biases, tables and scales."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() > 1 and "embeddings" not in name and "position_bias_table" not in name
            (decayed if is_matrix else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class WordLosses(nn.Module):
    """Two losses that teach a randomly initialised model to tell names apart; not part of the shipped model.

    The detector's own loss judges every word alone, so at first it only learns that objects are objects. Here words
    compete for an object: those of its caption (MDETR, section 2.2), and all words that there are.
    """

    separators: Tensor

    def __init__(self, config: GlipConfig, separators: Any) -> None:
        super().__init__()
        self.register_buffer("separators", torch.tensor(separators), persistent=False)
        self.vocabulary = nn.Linear(config.hidden_size, cast(BertConfig, config.text_config).vocab_size)

    def forward(self, output: HeadOutput, anchors: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """-> the losses "alignment" and "vocabulary", means over the positive anchors of the batch."""
        spoken = (batch["attention_mask"] != 0) & ~torch.isin(batch["input_ids"], self.separators)
        features = flatten_levels(output.features)
        in_caption, in_vocabulary = [], []
        for i, label in enumerate(batch["labels"]):
            matched = assign_atss(anchors, label["boxes"])
            positive = (matched >= 0).nonzero().squeeze(1)
            words = label["positive_map"][matched[positive]]
            scores = output.logits[i, positive].float().masked_fill(~spoken[i], -1e4)
            in_caption.append(word_cross_entropy(scores, words))
            counts = words.new_zeros(len(words), self.vocabulary.out_features)
            known = counts.index_add_(1, batch["input_ids"][i], words).clamp(max=1)
            in_vocabulary.append(word_cross_entropy(self.vocabulary(features[i, positive]).float(), known))
        total = max(1, sum(len(losses) for losses in in_caption))
        return {
            "alignment": torch.cat(in_caption).sum() / total,
            "vocabulary": torch.cat(in_vocabulary).sum() / total,
        }


def word_cross_entropy(scores: Tensor, words: Tensor) -> Tensor:
    """(M, T) scores and 0/1 words -> (M,) mean negative log-probability of each object's words."""
    return -(scores.log_softmax(-1) * words).sum(-1) / words.sum(-1)


@torch.no_grad()
def enlarge_unread_words(model: GlipForObjectDetection) -> None:
    """Scale the vectors of words that no caption held to the size of the others.

    As small as they started, a token's position and kind outweigh them, and the names of new classes look alike.
    """
    text_config = cast(BertConfig, model.config.text_config)
    vectors = model.text_encoder.model.get_input_embeddings().weight
    sizes, limit = vectors.std(1), 1.5 * text_config.initializer_range
    read, unread = sizes >= limit, (sizes > 0) & (sizes < limit)  # that of padding is zero for ever
    if read.any() and unread.any():
        vectors[unread] *= vectors[read].std() / vectors[unread].std()


class Pretraining:
    """Model, averaged model and optimiser of a run, with a state that survives interruption."""

    parts = ("model", "average", "auxiliary", "optimizer")

    def __init__(self, options: argparse.Namespace, processor: GlipProcessor) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        initial = options.initial_model
        self.model = (load_model(initial)[0] if initial else GlipForObjectDetection(GlipConfig.nano())).train()
        # Windows of 64 tokens are too small for the fused attention to pay on a CPU.
        self.model.backbone.body.set_attn_implementation("eager")
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
        separators = processor.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "."])
        self.auxiliary = nn.ModuleDict({"words": WordLosses(self.model.config, separators)})
        if options.distillation_weight:
            self.teacher = EfficientNetLite(processor.config)
            self.auxiliary["features"] = FeatureDistillation(self.model.backbone.body.channels)
        self.model.head.register_forward_hook(self._keep_head_output)
        self.model.backbone.body.register_forward_hook(self._keep_feature_maps)
        groups = parameter_groups(self.model, options.weight_decay)
        groups.append({"params": list(self.auxiliary.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0

    def _keep_head_output(self, module: nn.Module, inputs: Any, output: HeadOutput) -> None:
        self.head_output = output

    def _keep_feature_maps(self, module: nn.Module, inputs: Any, output: BackboneOutput) -> None:
        self.feature_maps = output.feature_maps

    @property
    def state_path(self) -> Path:
        return self.options.work_dir / "state.pt"

    def resume(self) -> None:
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, weights_only=True)
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        parts = {name: getattr(self, name).state_dict() for name in self.parts}
        with replacing(self.state_path) as temporary:
            torch.save({**parts, "step": self.step, "seconds": self.seconds}, temporary)

    def train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        options = self.options
        factor = learning_rate_factor(self.step, options.warmup_steps, options.steps, options.decay_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            output = self.model(**batch)
            auxiliary = self.auxiliary_losses(output.level_sizes, batch)
        weights = {"features": options.distillation_weight}
        loss = output.loss + sum(weights.get(name, options.word_weight) * value for name, value in auxiliary.items())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.step += 1
        losses = {name: value.item() for name, value in {**output.loss_dict, **auxiliary}.items()}
        return {**losses, "loss": loss.item(), "grad_norm": norm.item(), "lr": options.learning_rate * factor}

    def auxiliary_losses(self, level_sizes: list[tuple[int, int]], batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = self.auxiliary["words"](self.head_output, self.model.anchors(level_sizes), batch)
        if "features" in self.auxiliary:
            losses["features"] = self.auxiliary["features"](self.feature_maps, self.teacher(batch["pixel_values"]))
        return losses

    def export(self, processor: GlipProcessor) -> None:
        """Write the averaged model in half precision, as it is shipped."""
        folder = self.options.work_dir / "nano"
        model = cast(GlipForObjectDetection, self.average.module)
        model.backbone.body.set_attn_implementation("sdpa")
        enlarge_unread_words(model)
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)
        options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(self.options).items()}
        write_json(folder / "training.json", {"steps": self.step, "seconds": round(self.seconds), "options": options})


def batches(run: Pretraining, processor: GlipProcessor) -> Iterator[dict[str, Any]]:
    options = run.options
    photographs = Photographs(options.photos) if options.photos else None
    # Large objects in small numbers: shapes and textures of a few pixels teach nothing.
    scenes = ShapeScenes(photographs.names if photographs else (), SceneOptions(objects=(1, 8), sizes=(28.0, 150.0)))
    stream_options = StreamOptions(
        batch_size=options.batch_size,
        photo_ratio=options.photo_ratio,
        short_sides=tuple(options.short_sides) if options.short_sides else None,
        brightness=0.12,
        veiled=options.veiled,
        seed=options.seed,
    )
    return PretrainStream(processor, scenes, photographs, stream_options, run.step).loader(options.workers)


def main() -> None:
    options = parse_arguments()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    processor = GlipProcessor.nano()
    run = Pretraining(options, processor)
    run.resume()
    recent: deque[dict[str, float]] = deque(maxlen=50)
    start, before = time.monotonic(), run.seconds
    loader = batches(run, processor)
    with tqdm(initial=run.step, total=options.steps, unit="step", mininterval=10) as bar:
        while run.step < options.steps:
            recent.append(run.train_step(next(loader)))
            run.seconds = before + time.monotonic() - start
            bar.update()
            if run.step % 50 == 0:
                means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[0]}
                bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()}, refresh=False)
                with (options.work_dir / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": run.step, "seconds": round(run.seconds), **means}) + "\n")
            if run.step % options.save_every == 0 or run.step == options.steps:
                run.save()
    run.export(processor)


if __name__ == "__main__":
    main()
