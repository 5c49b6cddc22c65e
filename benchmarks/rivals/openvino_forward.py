"""The forward pass alone by OpenVINO: converted from torch, throughput hint, two streams, asynchronous requests."""

from typing import Any

import numpy as np
import openvino as ov
import torch
from common import answer, load_model
from forward_pass import arguments, normalised, timed

BATCH = 8


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--streams", default="2")
    args = parser.parse_args(argv)
    x = normalised(np.load(args.pixels))
    batches = [x[i : i + BATCH] for i in range(0, len(x) - len(x) % BATCH, BATCH)]
    shape = list(batches[0].shape)
    example = torch.zeros(shape)
    model = ov.convert_model(load_model(args.arch, args.weights), example_input=example, input=[shape])
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": args.streams,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[args.mode],
    }
    compiled = ov.Core().compile_model(model, "CPU", hints)
    queue = ov.AsyncInferQueue(compiled)
    rows: list[Any] = [None] * len(batches)

    def done(request: Any, place: int) -> None:
        rows[place] = request.get_output_tensor(0).data.reshape(BATCH, -1).astype(np.float32)

    queue.set_callback(done)

    def forward() -> np.ndarray:
        for place, batch in enumerate(batches):
            queue.start_async({0: batch}, place)
        queue.wait_all()
        return np.concatenate(rows)

    codes, rate = timed(forward, len(batches) * BATCH, args.seconds)
    np.save(args.out, codes)
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    return {"images_per_second": rate, "version": ov.__version__, "precision used": used}


if __name__ == "__main__":
    answer(main)
