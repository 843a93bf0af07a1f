"""Logits of a bundle for given tokens: `runtime_logits.py REQUEST.json OUT.npz`, run by a device runtime's Python.

In each case the first `at_once` of `tokens` are read at once, the rest one at a time, as in generation; then `generate`
tokens are generated greedily.
"""

import json
import sys
from pathlib import Path

import numpy
import onnxruntime_genai as og


def run(model, tokens, at_once, generate):
    params = og.GeneratorParams(model)
    length = len(tokens) + generate
    params.set_search_options(do_sample=False, max_length=length + 1, min_length=length)
    generator = og.Generator(model, params)
    rows, positions = [], []
    for start, stop in [(0, at_once), *((index, index + 1) for index in range(at_once, len(tokens)))]:
        generator.append_tokens(tokens[start:stop])
        logits = numpy.array(generator.get_output("logits"))[0]
        rows.append(logits)
        # A bundle with a pruned head gives the logits of the last token only.
        positions += range(stop - len(logits), stop)
    for _ in range(generate):
        generator.generate_next_token()
    generated = [int(token) for token in generator.get_sequence(0)][len(tokens) :]
    return numpy.concatenate(rows), positions, generated


def main(request, out):
    og.disable_telemetry_events()
    content = json.loads(Path(request).read_text(encoding="utf-8"))
    model = og.Model(content["folder"])
    arrays = {}
    for number, case in enumerate(content["cases"]):
        logits, positions, generated = run(model, case["tokens"], case["at_once"], case["generate"])
        arrays[f"logits{number}"] = logits
        arrays[f"positions{number}"] = numpy.array(positions)
        arrays[f"generated{number}"] = numpy.array(generated)
    numpy.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
