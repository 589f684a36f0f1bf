"""Execution providers: which ones run here, which one is best for a model, and how to switch.

Shows ``onnxq.available_backends``, ``select_backend``, ``compare_backends`` and sessions. ONNX
Runtime's usual build has one provider, the CPU; ``pip install onnxruntime-openvino`` in an
environment of its own brings a second one, and more lines below. A network on MNIST; handwritten
digits with ``--quick``, or where MNIST cannot be had. Takes 12 s on two cores, 3 s with
``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/backend_selection.py --quick
    available: cpu, fuses int8: yes
    by hardware: cpu
    on this model: cpu
    cpu: speed 1.00, 0 nodes on the CPU instead
    cpu: within 1e-06 of the CPU's scores
    int8 on CPUExecutionProvider: 2.56~any times as fast, planned for cpu-...

    $ python examples/backend_selection.py
    available: cpu, fuses int8: yes
    by hardware: cpu
    on this model: cpu
    cpu: speed 1.00, 0 nodes on the CPU instead
    cpu: within 1e-06 of the CPU's scores
    int8 on CPUExecutionProvider: 1.98~any times as fast, planned for cpu-...
"""

import numpy as np
from msgspec.structs import replace
from shipped_models import quick_asked, shipped

import onnxq
from onnxq.data import open_data
from onnxq.plan import VerifySettings
from onnxq.runtime import Session
from onnxq.targets import Provider


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)
    subject = shipped("mnist_cnn", quick=quick)
    model = onnxq.load(subject.model)

    # 1. What is available. Each provider has opened a small session: that it is built into ONNX
    #    Runtime does not mean that its device and its libraries are here.
    backends = onnxq.available_backends()
    for backend in backends:
        fuses = {True: "yes", False: "no", None: "not known"}[backend.int8]
        print(f"available: {backend.name}, fuses int8: {fuses}")

    # 2. The optimal one by hardware alone, and by measurement on this model.
    print(f"by hardware: {onnxq.select_backend().name}")
    seconds = 0.5 if quick else 3.0
    print(f"on this model: {onnxq.select_backend(model, seconds=seconds).name}")

    # 3. All of them compared: speeds against the CPU provider, and what falls back to it.
    report = onnxq.compare_backends(model, batch_size=32, seconds=seconds)
    for found in report.backends:
        if found.speed is not None:
            fallback = len(found.fallback) if found.fallback is not None else "not told how many"
            print(f"{found.name}: speed {found.speed:.2f}, {fallback} nodes on the CPU instead")

    # 4. Switch: open a session on another provider. Options go by ONNX Runtime's names, and
    #    strict=True refuses what would fall back.
    reader = open_data(subject.test, model.view().inputs, preprocess=subject.recipe.data.preprocess)
    batch = next(iter(reader.batches(32)))
    answers = {}
    for backend in backends:
        with Session(model, provider=Provider(backend.name, strict=True)) as session:
            answers[backend.name] = session.run(batch.feed)["logits"]
    for name, scores in answers.items():
        difference = np.abs(scores - answers["cpu"]).max() / np.abs(answers["cpu"]).max()
        print(f"{name}: within {max(difference, 1e-6):.0e} of the CPU's scores")

    # 5. Quantize for a provider: models run there while they are measured, and the plan is made
    #    for it. "auto" takes the one that runs the float model fastest.
    recipe = replace(
        subject.recipe, precision="int8", provider=Provider("auto"),
        verify=VerifySettings(seconds=seconds),
    )  # fmt: skip
    result = onnxq.quantize(subject.model, data=subject.data, test_data=subject.test, recipe=recipe)
    latency = result.receipt.measured.latency
    assert latency is not None  # it was measured
    speed = latency.ratio_prepared
    print(
        f"int8 on {latency.provider}: {speed:.2f} times as fast, planned for {result.plan.target}"
    )


if __name__ == "__main__":
    main()
