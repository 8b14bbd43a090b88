"""OpenVINO GenAI's continuous batching over a plan of batches; prints the rates as JSON.

Started by `benchmarks.versus_openvino`, maybe in another environment: needs openvino-genai and nothing of this project
but the plan.
"""

import json
import sys
from collections.abc import Sequence
from itertools import count

from benchmarks.cells import Plan, Prompt, rates

try:
    import numpy as np
    import openvino
    import openvino_genai
except ImportError as problem:
    sys.exit(f"{sys.executable}: {problem}; install openvino-genai, or name a Python that has it with --peer-python")


class Pipeline:
    """Decodes batches, greedily."""

    def __init__(self, folder: str, properties: dict[str, object], scheduling: dict[str, object]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        for name, value in scheduling.items():
            setattr(scheduler, name, value)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self._ids = count()

    def decode(self, prompts: Sequence[Prompt], num_tokens: int) -> int:
        """See `benchmarks.cells.Decode`."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_tokens, True, False
        # A request lives as long as its handle.
        handles = [
            self._pipeline.add_request(id_, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
            for id_, prompt in zip(self._ids, prompts, strict=False)
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return sum(len(output.generated_ids) for handle in handles for output in handle.read_all())


def main() -> None:
    """Arguments: a folder with the exported model, a plan, properties of the device and fields of the scheduler."""
    folder, plan, properties, scheduling = sys.argv[1:]
    pipeline = Pipeline(folder, json.loads(properties), json.loads(scheduling))
    print(json.dumps(rates(Plan.from_json(plan), pipeline.decode)))


if __name__ == "__main__":
    main()
