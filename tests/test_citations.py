"""Every paper that the code names has an entry, and what was used is found through wrappers."""

import ast
import functools
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import trueward
from trueward.citations import citation_keys, citations, entries, fields

PACKAGE = Path(trueward.__file__).parent


def keys_in_source() -> list[tuple[str, str]]:
    """(file, key) of every string in an assignment to a name `citation`, read from the source without importing it."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(getattr(target, "id", getattr(target, "attr", None)) == "citation" for target in targets):
                strings = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                found += [(str(path.relative_to(PACKAGE)), key) for key in strings]
    return found


def test_every_key_in_the_source_has_an_entry():
    used = keys_in_source()
    # the scan sees annotated attributes of classes
    assert ("schedules/variance_preserving.py", "song2021score") in used
    assert ("noise.py", "salmon2011parallel") in used  # and assignments of modules
    assert [(path, key) for path, key in used if key not in entries()] == []


def test_every_entry_is_complete_and_balanced():
    text = (PACKAGE / "references.bib").read_text()
    assert len(re.findall(r"^@", text, re.MULTILINE)) == len(entries())  # none lost, none twice
    for key, entry in entries().items():
        assert entry.count("{") == entry.count("}"), key
        assert {"title", "author", "year"} <= fields(key).keys(), key
        assert entry.startswith("@misc") <= ("eprint" in fields(key)), key


def test_a_wrapped_model_cites_wrapper_model_and_schedule():
    model = trueward.EpsDenoiser(nn.Identity(), trueward.DiscreteSchedule.cosine(100), num_classes=3)
    guided = trueward.ClassifierFreeGuidance(model, 2.0)
    assert citation_keys(guided) == ["ho2022classifierfree", "ho2020denoising", "lu2022dpmsolver"]
    assert "Classifier-Free Diffusion Guidance" in citations(guided)


def test_a_sampler_cites_its_grid():
    assert citation_keys(trueward.DDIM(grid="karras")) == ["song2021denoising", "karras2022elucidating"]


def test_a_paper_is_listed_once_in_the_order_of_use():
    text = citations(trueward.VE(), trueward.VPCosine(), trueward.VPLinear())
    assert re.findall(r"@\w+\{(\w+),", text) == ["song2021score", "nichol2021improved"]


def test_classes_functions_partials_and_names_are_taken_too():
    assert citation_keys(trueward.EDM) == ["karras2022elucidating"]
    assert citation_keys(trueward.Noise.rows(0, 2)) == ["salmon2011parallel"]
    assert citation_keys(functools.partial(trueward.DDIM, steps=3)) == ["song2021denoising"]
    assert citation_keys({"a": [trueward.VE()]}) == ["song2021score"]


def test_modules_inside_a_torch_container_are_found():
    model = trueward.VDenoiser(nn.Linear(2, 2), trueward.VPLinear())
    assert "salimans2022progressive" in citation_keys(nn.Sequential(nn.ReLU(), model))


def test_cycles_end_and_tensors_are_not_entered():
    class Loop:
        pass

    loop = Loop()
    loop.itself, loop.weights, loop.schedule = loop, torch.zeros(3), trueward.VE()
    assert citation_keys(loop) == ["song2021score"]


def test_a_class_of_your_own_may_bring_its_entry():
    class Mine(trueward.DDIM):
        citation = ("@misc{mine, title = {Mine}}", "ho2020denoising")

    assert citations(Mine()).startswith("@misc{mine, title = {Mine}}\n\n@inproceedings{ho2020denoising")


def test_an_unknown_key_is_an_error_with_the_closest_one():
    class Wrong:
        citation = ("karras2022elucidatin",)

    with pytest.raises(ValueError, match="Did you mean 'karras2022elucidating'"):
        citations(Wrong())


def test_nothing_used_cites_nothing_and_no_argument_cites_trueward():
    assert citations(nn.Linear(1, 1)) == ""
    assert citations().startswith("@software{trueward,")


def test_there_are_twenty_methods_with_papers_of_their_own():
    methods = trueward.methods()
    assert len(methods) == 20
    assert len({m.name for m in methods}) == 20
    assert len({m.keys[0] for m in methods}) == 20
    for m in methods:
        assert m.title
        assert len(m.authors) >= 3
        assert 2015 < m.year < 2030
        assert re.fullmatch(r"\d{4}\.\d{5}", m.arxiv)


def test_a_method_is_available_exactly_if_its_module_is_there():
    for m in trueward.methods():
        path = PACKAGE / m.home.replace(".", "/")
        assert (m.status == "available") == (path.with_suffix(".py").exists() or path.joinpath("__init__.py").exists())


def test_the_paper_of_dpm_solver_is_read_from_the_references():
    solver = trueward.method("dpm_solver")
    assert (solver.venue, solver.year, solver.arxiv) == ("NeurIPS", 2022, "2206.00927")
    assert solver.authors[0] == "Lu, Cheng"
    assert citations(solver) == solver.bibtex
    with pytest.raises(ValueError, match="Did you mean 'diffrs'"):
        trueward.method("difrs")


def test_the_verdict_of_the_last_reproduction_is_read_from_its_record(tmp_path):
    solver = trueward.method("dpm-solver")
    assert solver.last_reproduction(tmp_path) is None
    (tmp_path / "dpm-solver.json").write_text(json.dumps({"verdict": "reproduced", "date": "2026-01-31"}))
    assert solver.last_reproduction(tmp_path) == "reproduced (2026-01-31)"
    (tmp_path / "dpm-solver.json").write_text("[]")
    with pytest.raises(ValueError, match="not the record of a reproduction"):
        solver.last_reproduction(tmp_path)
