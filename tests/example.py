"""The example's deployment files, as they stand in template.yaml and infra/embed.

``python tests/example.py`` writes them anew after a template or the example has changed.
"""

import importlib.util
from pathlib import Path

from zerowake.adapters.deploy.commands import rendered
from zerowake.adapters.deploy.needs import Needs, estimate
from zerowake.adapters.deploy.platforms import Place
from zerowake.runtime.forms import FormName
from zerowake.runtime.function import Function, function_of

ROOT = Path(__file__).parents[1]
WEIGHTS_NBYTES = 90_877_440  # all-MiniLM-L6-v2 in float32
PLACE = Place(
    image="europe-docker.pkg.dev/PROJECT/zerowake/embed:1", url="s3://BUCKET/snapshots/embed"
)
KINDS = ("kubernetes", "knative", "keda")
OTHERS = ("cloud-run", "sagemaker", "azure", "runpod", "runpod-queue", "vertex")


def example() -> Function:
    """The function of examples/embed; nothing of its model is loaded."""
    spec = importlib.util.spec_from_file_location("embed_app", ROOT / "examples/embed/app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return function_of(module.Embed)


def needs(*, gpu: bool = False) -> Needs:
    settings = example().settings
    return estimate(
        settings, WEIGHTS_NBYTES, FormName.TORCH_FREE, name="embed", snapshot="embed", gpu=gpu
    )


def files() -> dict[Path, str]:
    """Path -> what belongs there."""
    found = {ROOT / "template.yaml": rendered("lambda", needs(), Place())["template.yaml"]}
    folder = ROOT / "infra" / "embed"
    for platform in KINDS:
        found[folder / f"{platform}-values.yaml"] = rendered(platform, needs(), PLACE)[
            "values.yaml"
        ]
    for platform in OTHERS:
        for name, content in rendered(platform, needs(), PLACE).items():
            found[folder / f"{platform}-{name}"] = content
    return found


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path.relative_to(ROOT))
