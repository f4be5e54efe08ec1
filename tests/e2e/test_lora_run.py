"""A run by LoRA from the command line: trained, resumed, and exported both ways."""

import json

import pytest
import torch


@pytest.mark.slow
def test_a_lora_run_is_resumed_and_exported_merged_and_as_adapters(forked, tmp_path, tiny_run, quickstart_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (tmp_path / "run.yaml").write_text(tiny_run)
    sets = ("run.steps=3", "evaluation=null", "optim.lr=1e-2")
    words = (word for item in sets for word in ("--set", item))
    done = forked("train", "run.yaml", "--lora_rank", "8", "--lr_scheduler", "linear", *words)
    assert done.returncode == 0, done.stderr
    newest = tmp_path / "runs/tiny/checkpoints/step_000003"
    files = {path.relative_to(newest).as_posix() for path in newest.rglob("*.safetensors")}
    assert {"policy/weights/whole.safetensors", "base/whole.safetensors"} <= files
    newest.rename(tmp_path / "away")
    again = forked("train", "--resume", "tiny")
    assert again.returncode == 0, again.stderr
    before, after = (
        json.loads((folder / "manifest.json").read_text())["files"]["policy/weights/whole.safetensors"]
        for folder in (tmp_path / "away", newest)
    )
    assert before == after
    for words in (("--to", "merged"), ("--to", "adapters", "--adapter")):
        done = forked("export", "tiny", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("wrote step 3")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(quickstart_model, dtype=torch.float32)
        start = base(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        found = PeftModel.from_pretrained(base, tmp_path / "adapters")(ids).logits
    assert torch.allclose(merged, found, atol=1e-3)
    assert not torch.allclose(merged, start, atol=0.1)
