"""Find the layers that quantization hurts, let them fall back by themselves, and report.

Shows ``onnxq.analyze_sensitivity``, budgets, ``onnxq.search_plan`` with a metric of your own, and
reports. 4-bit weights in a mobile network for CIFAR-10; handwritten digits with ``--quick``, or
where CIFAR-10 cannot be had. Takes 1 min on two cores, 4 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/sensitivity_analysis.py --quick
    all of 5: 21.3~1 dB
    /fc2/Gemm: 25.5~1 dB quantized alone, 22.6~1 dB float alone
    /conv3/Conv: 27.5~1 dB quantized alone, 22.4~1 dB float alone
    /conv2/Conv: 29.9~1 dB quantized alone, 22.5~1 dB float alone
    wrote build/examples/sensitivity.md and build/examples/sensitivity.csv
    all quantized: size 0.15~0.01, 21.5~1 dB, top1 0.9916~0.005
    at least 25 dB: size 0.18~0.02, 25.8~1 dB, top1 0.9950~0.005
      3~2 layers have more than 4 bits, such as /fc2/Gemm
    within a drop of at most 0.01 and 25 dB: yes, size 0.22~0.05
    3~2 int8-weights, 2~2 int4-weights

    $ python examples/sensitivity_analysis.py
    all of 30: 18.3~2 dB
    /blocks/blocks.0/body/body.3/Conv: 24.6~2 dB quantized alone, 18.0~2 dB float alone
    /blocks/blocks.0/body/body.6/Conv: 26.2~2 dB quantized alone, 17.8~2 dB float alone
    /blocks/blocks.0/body/body.0/Conv: 28.5~2 dB quantized alone, 19.0~2 dB float alone
    wrote build/examples/sensitivity.md and build/examples/sensitivity.csv
    all quantized: size 0.16~0.1, 17.6~2 dB, top1 0.8414~0.005
    at least 25 dB: size 0.18~0.1, 26.0~2 dB, top1 0.8504~0.005
      16~5 layers have more than 4 bits, such as /head/Gemm
    within a drop of at most 0.01 and 25 dB: yes, size 0.18~0.1
    15~8 int8-weights, 15~8 int4-weights
"""

from pathlib import Path

import numpy as np
from msgspec.structs import replace
from shipped_models import output, quick_asked, shipped

import onnxq
from onnxq.plan import Budgets, VerifySettings
from onnxq.report import to_csv, to_markdown
from onnxq.rewrite import rewrite
from onnxq.types import Precision


def sure(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """The share of images that are named rightly, a logit ahead of all other names."""
    ranked = np.sort(outputs["logits"], axis=1)
    right = outputs["logits"].argmax(1) == labels
    return float((right & (ranked[:, -1] - ranked[:, -2] > 1)).mean())


def main() -> None:
    """Run the example."""
    subject = shipped("cifar10_mobilenet", quick=quick_asked(__doc__))
    samples = {"data": subject.data, "test_data": subject.test}
    # Weights of 4 bits are about size: no time is spent on measuring speed.
    recipe = replace(
        subject.recipe, precision="int4-weights", budgets=Budgets(),
        verify=VerifySettings(seconds=0),
    )  # fmt: skip

    # 1. Find: every layer is quantized alone, and every layer but one. The most sensitive first.
    report = onnxq.analyze_sensitivity(subject.model, **samples, recipe=recipe)
    print(f"all of {len(report.layers)}: {report.everything['int4-weights'].sqnr_db:.1f} dB")
    for layer in report.layers[:3]:
        assert layer.rest is not None  # the analysis was exact, and no screen
        print(
            f"{layer.name}: {layer.only.sqnr_db:.1f} dB quantized alone, "
            f"{layer.rest.sqnr_db:.1f} dB float alone"
        )

    # 2. Report: a table for people, and all figures for a spreadsheet. onnxq.report also makes a
    #    page with charts (sensitivity_page).
    Path(output("sensitivity.md")).write_text(to_markdown(report), encoding="utf-8")
    Path(output("sensitivity.csv")).write_text(to_csv(report), encoding="utf-8")
    print(f"wrote {output('sensitivity.md')} and {output('sensitivity.csv')}")

    # 3. Without a budget all layers are quantized, whatever it costs.
    everything = onnxq.quantize(subject.model, **samples, recipe=recipe).receipt.measured
    assert everything.metric is not None  # the test samples have labels
    print(
        f"all quantized: size {everything.size_ratio:.2f}, "
        f"{everything.outputs['logits'].sqnr_db:.1f} dB, top1 {everything.metric.output:.4f}"
    )

    # 4. Fall back automatically: a budget sends as few layers back to float as it takes, and is
    #    then proved on samples that the search has not seen.
    strict = replace(recipe, budgets=Budgets(min_sqnr=25.0))
    result = onnxq.quantize(subject.model, **samples, recipe=strict)
    measured = result.receipt.measured
    assert measured.metric is not None
    print(
        f"at least 25 dB: size {measured.size_ratio:.2f}, "
        f"{measured.outputs['logits'].sqnr_db:.1f} dB, top1 {measured.metric.output:.4f}"
    )
    kept = [n for n in result.plan.nodes if n.op in ("Conv", "Gemm") and n.reason is not None]
    print(f"  {len(kept)} layers have more than 4 bits, such as {kept[-1].name}")

    # 5. Nobody says that they must fall back to float: with the objective "size" every layer has
    #    8-bit or 4-bit weights, whichever serves best. Here a metric of one's own is the judge,
    #    any function of outputs and labels. A search gives a plan, which is applied then.
    found = onnxq.search_plan(
        subject.model, metric=sure, **samples, objective="size",
        budgets=Budgets(max_drop=0.01, min_sqnr=25.0), recipe=replace(recipe, precision="auto"),
    )  # fmt: skip
    counts = {p: found.plan.count(p) for p in Precision if p.value.endswith("-weights")}
    onnxq.save(rewrite(found.prepared, found.plan), output("smallest.onnx"))
    size = Path(output("smallest.onnx")).stat().st_size / Path(subject.model).stat().st_size
    print(f"within {found.limits}: {'yes' if found.within else 'no'}, size {size:.2f}")
    print(", ".join(f"{count} {precision}" for precision, count in counts.items()))


if __name__ == "__main__":
    main()
