"""The verb that writes a generation, or a model, for others."""

import argparse
from pathlib import Path
from typing import Any

from blip_core.cli.verbs import Verbs, read_params

_OF_GENERATIONS = ("images", "kept_only", "all", "shards", "metadata")


def add_verb(verbs: Verbs) -> None:
    summary = "write a generation, or a model, as other tools read it, with a card"
    export = verbs.add("export", _export, summary, example="artifacts/generations/g1 --format webdataset --out exported")
    export.add_argument("folder", type=Path, help="as artifacts/generations/g1 or artifacts/heldout; with --model as artifacts/models/g1")
    export.add_argument("--out", type=Path, required=True, help="folder to write; an earlier export there is replaced")
    export.add_argument("--to", help="s3://bucket/prefix to upload it to as well")
    forms = "webdataset, imagefolder, parquet, coco, salesforce, open_clip, kohya, llava, label_studio or fiftyone"
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--format", help=f"of a generation: {forms}")
    form.add_argument("--model", metavar="FORM", help="of a model: onnx or torch.export")
    export.add_argument("--license", default="unknown", help="for the card")
    export.add_argument("--metrics", type=Path, help="default: artifacts/metrics beside the generation or model")
    _add_options(export)


def _add_options(export: argparse.ArgumentParser) -> None:
    kinds = "jpg: PNG and WebP become JPEG, which every loader reads; keep: each stays as it is; default: jpg for webdataset, else keep"
    export.add_argument("--images", choices=("jpg", "keep"), help=kinds)
    which = export.add_mutually_exclusive_group()
    which.add_argument("--kept-only", action="store_true", help="only the texts that were kept (default)")
    which.add_argument("--all", action="store_true", help="every text, each with the reason for its fate")
    export.add_argument("--shards", type=Path, help="default: artifacts/shards beside the generation")
    export.add_argument("--metadata", type=Path, help="default: artifacts/metadata beside the generation")
    says = "how far an output of a model's files may be from the model's own; default: 0.001"
    export.add_argument("--max-difference", type=float, metavar="X", help=says)


def _export(args: argparse.Namespace) -> None:
    if args.model:
        if given := [f"--{name.replace('_', '-')}" for name in _OF_GENERATIONS if getattr(args, name)]:
            raise ValueError(f"{', '.join(given)}: for a generation; a model has none of it")
        _export_model(args)
    else:
        if args.max_difference is not None:
            raise ValueError("--max-difference: for a model; a generation is written as it is")
        _export_generation(args)
    if args.to:
        from blip_core.export.upload import upload

        print(f"{args.to}: {upload(args.out, args.to, read_params(args).ingest.remote)} objects sent, the rest was there")


def _export_generation(args: argparse.Namespace) -> None:
    from blip_core.export.data import export

    options = {"form": args.format, "everything": args.all, "pictures": args.images, "licence": args.license}
    manifest = export(args.folder, args.out, shards=args.shards, metadata=args.metadata, metrics=args.metrics, **options)
    print(f"{args.out}: {manifest['images']} images with {sum(manifest['texts'].values())} texts; {args.out / 'README.md'} is its card")


def _export_model(args: argparse.Namespace) -> None:
    from blip_core.export.model import export_model

    options: dict[str, Any] = {} if args.max_difference is None else {"max_difference": args.max_difference}
    manifest = export_model(args.folder, args.out, form=args.model, licence=args.license, metrics=args.metrics, **options)
    for part in manifest["graphs"].values():
        print(f"{args.out / part['file']}: differs from the model by at most {max(part['difference'].values()):.1e}")
    print(f"{args.out}: `python {args.out / 'example.py'} PICTURE --text TEXT` runs it alone; {args.out / 'README.md'} is its card")
