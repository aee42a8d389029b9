"""What pyproject.toml can't say: a wheel packs files of the repository that are no code: what `blip init`, `blip plan` and register read.

blip_core/runtime/installed.py finds them there, or in a checkout where they stand.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKED = (
    "dvc.yaml",
    "params.yaml",
    "prefect.yaml",
    ".dvc/config",
    ".dvc/plots.html",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    "mlflow/serve.py",
    "benchmarks/results/regimes.json",
)


class WithRepositoryFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in PACKED:
            target = Path(self.build_lib, "blip_core/packed", name)
            self.mkpath(str(target.parent))
            self.copy_file(name, str(target))

    def get_source_files(self) -> list[str]:
        """So that a source distribution has them too."""
        return [*super().get_source_files(), *PACKED]


setup(cmdclass={"build_py": WithRepositoryFiles})
