"""What a run tells people: log lines, a progress bar, samples, the curve beside the checkpoint. Knows no tensors."""

from typing import NoReturn, TextIO

from tqdm import tqdm

from training.config import TrainConfig
from training.log import LOG_FILE, Record, RunLog, read_log
from training.plots import plot_curves
from training.progress import Progress, StepReport, Validation

CURVE_FILE = "loss.png"


class Journal:
    """The Observer of worker 0."""

    def __init__(self, config: TrainConfig, progress: Progress, stream: TextIO) -> None:
        """`progress` is where the run starts; later log lines are dropped. The bar shows where `stream` is a screen."""
        self.config = config
        self.stream = stream
        self.tokens_per_step = config.length.batch_size * config.model.context_length
        self.log = RunLog(config.out / LOG_FILE)
        self.log.truncate(progress.step)
        self.last = (progress.step, progress.seconds)
        self.bar = _bar(config, progress, stream)

    def on_step(self, progress: Progress, report: StepReport) -> None:
        """Move the bar; write a line every `log_interval` steps."""
        self.bar.update(_place(self.config, progress) - self.bar.n)
        if progress.step % self.config.length.log_interval == 0:
            speed = self._tokens_per_second(progress)
            self.bar.set_postfix_str(f"loss {report.loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            self.log.write({**self._where("step", progress), **self._numbers(report), "tokens_per_second": speed})

    def on_evaluation(self, progress: Progress, validation: Validation, sample: str, is_best: bool) -> None:
        """Write a line, show the sample, draw the curve anew."""
        result: dict[str, object] = {"validation_loss": validation.loss}
        text = f"step {progress.step}, {progress.seconds:.1f} s: validation loss {validation.loss:.4f}"
        if validation.agreement is not None:
            result["validation_agreement"] = validation.agreement
            text += f", agreement {validation.agreement:.4f}"
        self.log.write({**self._where("evaluation", progress), **result, "is_best": is_best, "sample": sample})
        mark = ", the best so far" if is_best else ""
        self.bar.write(f"{text}{mark}\n{_indented(sample)}", file=self.stream)
        plot_curves({self.config.out.name: read_log(self.log.path)}, self.config.out / CURVE_FILE)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()

    def _where(self, kind: str, progress: Progress) -> Record:
        tokens = progress.step * self.tokens_per_step
        return {"kind": kind, "step": progress.step, "tokens": tokens, "seconds": round(progress.seconds, 3)}

    def _numbers(self, report: StepReport) -> Record:
        optimizer = self.config.optimizer
        record: dict[str, object] = {"loss": report.loss, "grad_norm": report.grad_norm}
        record["learning_rate"] = optimizer.learning_rate * report.rate_factor
        if optimizer.matrices == "muon":
            record["muon_learning_rate"] = optimizer.muon_learning_rate * report.rate_factor
        if report.router is not None:
            record["balance_loss"] = report.router.balance
            record["router_z_loss"] = report.router.router_z
            record["expert_load"] = [[round(share, 4) for share in layer] for layer in report.router.expert_load]
        return record

    def _tokens_per_second(self, progress: Progress) -> int:
        step, seconds = self.last
        self.last = (progress.step, progress.seconds)
        return round((progress.step - step) * self.tokens_per_step / max(progress.seconds - seconds, 1e-9))


def _bar(config: TrainConfig, progress: Progress, stream: TextIO) -> "tqdm[NoReturn]":
    length = config.length
    return tqdm(
        total=length.max_steps or length.max_seconds,
        initial=_place(config, progress),
        unit="step" if length.max_steps else "s",
        desc=config.out.name,
        file=stream,
        disable=not stream.isatty(),
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left, {postfix}",
    )


def _place(config: TrainConfig, progress: Progress) -> float:
    """How far along the bar: in steps, or in seconds where those end the run."""
    return progress.step if config.length.max_steps else progress.seconds


def _indented(sample: str) -> str:
    return "".join(f"    {line}\n" for line in sample.strip().splitlines())
