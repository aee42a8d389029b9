"""Caption a picture, and say how well texts fit it, with the files beside this script: onnxruntime (torch for .pt2 files), tokenizers,
numpy and Pillow are all it needs.

    python example.py picture.jpg --text "a dog on the grass"
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image, ImageOps

Tensors = dict[str, np.ndarray]


class Part:
    """One of the files: arrays by name in, arrays by name out."""

    def __init__(self, path: Path, inputs: list[str], outputs: list[str]):
        self.inputs, self.outputs = inputs, outputs
        self._run = self._onnx(path) if path.suffix == ".onnx" else self._torch(path)

    def __call__(self, **given: np.ndarray) -> Tensors:
        return dict(zip(self.outputs, self._run([given[name] for name in self.inputs]), strict=True))

    def _onnx(self, path: Path) -> Any:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda arrays: session.run(self.outputs, dict(zip(self.inputs, arrays, strict=True)))

    def _torch(self, path: Path) -> Any:
        import torch

        function = torch.export.load(path).module()

        def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
            with torch.inference_mode():
                found = function(*map(torch.from_numpy, arrays))
            return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]

        return run


class Blip:
    """The model of a folder that `blip export` wrote."""

    def __init__(self, folder: Path):
        self.about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # a "[SEP]" within a text is plain characters
        self.parts = {}
        for name, part in self.about["graphs"].items():
            self.parts[name] = Part(folder / part["file"], [port["name"] for port in part["inputs"]], part["outputs"])

    def pixels(self, path: Path) -> np.ndarray:
        """1 x 3 x H x W, as the manifest says under `picture`."""
        picture = self.about["picture"]
        opened = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened).convert("RGB")
        values = np.asarray(image.resize(picture["size"], Image.Resampling.BICUBIC), np.float32) * np.float32(picture["scale"])
        normal = (values - np.array(picture["mean"], np.float32)) / np.array(picture["std"], np.float32)
        return normal.transpose(2, 0, 1)[None]

    def seen(self, path: Path) -> Tensors:
        """What the other parts read of a picture."""
        return self.parts["image"](pixels=self.pixels(path))

    def encoded(self, text: str) -> Tensors:
        """[CLS] text [SEP]; the matcher puts its own first token in place of [CLS]."""
        said = self.about["text"]
        pieces = self.tokenizer.encode(text, add_special_tokens=False).ids[: said["max_tokens"] - 2]
        ids = np.array([[said["cls"], *pieces, said["sep"]]], np.int64)
        return {"ids": ids, "mask": np.ones_like(ids, bool)}

    def match(self, seen: Tensors, text: str) -> float:
        """P(match) of ITM. It is no calibrated probability."""
        logits = self.parts["match"](**self.encoded(text), **seen)["logits"][0]
        return float(1 / (1 + np.exp(logits[0] - logits[1])))

    def similarity(self, seen: Tensors, text: str) -> float:
        """The cosine of ITC."""
        return float(seen["feature"][0] @ self.parts["text"](**self.encoded(text))["feature"][0])

    def caption(self, seen: Tensors) -> str:
        """The most probable token at each step, one token a call; `past` is what the calls before left."""
        said, step = self.about["text"], self.parts["step"]
        prompt = self.tokenizer.encode(said["prompt"].rstrip(), add_special_tokens=False).ids
        waiting: list[int] = [said["dec"], *prompt]
        written: list[int] = []
        ports = {port["name"]: port["shape"] for port in self.about["graphs"]["step"]["inputs"]}
        past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in ports.items() if name.startswith("past_")}
        for _ in range(said["positions"]):
            found = step(ids=np.array([[waiting.pop(0)]], np.int64), **seen, **past)
            past = {name.replace("present", "past"): value for name, value in found.items() if name.startswith("present_")}
            if not waiting:
                best = int(found["logits"][0].argmax())
                if best == said["sep"] or len(written) == said["max_new_tokens"]:
                    break
                written.append(best)
                waiting = [best]
        return self.tokenizer.decode([i for i in written if i not in said["hidden"]]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="caption a picture, and say how well texts fit it")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--text", nargs="*", default=[], help="texts to score")
    args = parser.parse_args()
    blip = Blip(Path(__file__).parent)
    seen = blip.seen(args.picture)
    if "step" in blip.parts:
        print(f"caption: {blip.caption(seen)}")
    for text in args.text:
        scores = [f"ITM {blip.match(seen, text):.4f}"] if "match" in blip.parts else []
        scores += [f"ITC {blip.similarity(seen, text):.4f}"] if "text" in blip.parts else []
        print(f"{', '.join(scores)}: {text}")


if __name__ == "__main__":
    main()
