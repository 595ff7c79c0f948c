"""What ``zerowake deploy`` and ``zerowake bundle`` do: snapshot in, files out."""

import os
import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path

from zerowake.adapters.deploy import bundle as bundles
from zerowake.adapters.deploy.needs import Needs, estimate
from zerowake.adapters.deploy.platforms import PLATFORMS, Place, values
from zerowake.adapters.deploy.render import plain, render, template
from zerowake.adapters.deploy.requirements import imports_torch
from zerowake.adapters.stores import open_store
from zerowake.runtime.cache import cache_directory, ensure_snapshot
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.forms import Chosen, FormName, choose
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.inspection import columns, human_nbytes
from zerowake.runtime.remote import localize
from zerowake.runtime.target import is_target
from zerowake.snapshot import form as forms
from zerowake.snapshot import state
from zerowake.snapshot.errors import SnapshotError
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.remote import is_remote
from zerowake.snapshot.store import open_snapshot

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING",
}


def opened(text: str) -> Snapshot:
    """The snapshot in a folder or a store, or of a source as it is now.

    Raises SnapshotError, StoreError, TargetError.
    """
    if is_target(text):
        return open_snapshot(ensure_snapshot(text, cache_directory(os.environ)))
    return open_snapshot(Path(localize(text, open_store, os.environ)))


def place_of(text: str, image: str, url: str) -> Place:
    """Where the image is, and the snapshot: where ``text`` says so if it is in a store.

    Without the digest that a URL may end in: it is among those to be trusted. Raises ConfigError.
    """
    url = (url or (text if is_remote(text) else "")).partition("#")[0]
    if url and not (is_remote(url) or url.startswith("/")):
        raise ConfigError(
            f"--url is {url!r:.80}; wanted a URL (s3://BUCKET/KEY), or the absolute path of a folder in "
            "the container"
        )
    return Place(plain("--image", image), plain("--url", url))


def trust_of(snapshot: Snapshot, named: tuple[str, ...]) -> tuple[str, ...]:
    """The digests to run: the snapshot's, and those of its compiled forms, where this user made them
    or names them. Raises ConfigError when the code is a stranger's."""
    vouched = frozenset(named)
    if not state.is_trusted(snapshot.digest, vouched):
        raise ConfigError(
            f"{snapshot.manifest.name} was not made here by this user; to have its code run on a "
            f"platform, name it: --trust {snapshot.digest}"
        )
    digests = [snapshot.digest]
    for path in sorted((snapshot.path / forms.DIRECTORY).glob(f"[!.]*/{forms.FILE}")):
        try:
            form = forms.parse_form(path.parent, path.read_bytes())
        except (SnapshotError, OSError):
            continue  # it is not used either
        if form.snapshot == snapshot.digest and state.is_trusted(form.digest, vouched):
            digests.append(form.digest)
    return tuple(digests)


def form_of(snapshot: Snapshot, trust: tuple[str, ...], *, gpu: bool, eager: bool) -> Chosen:
    """The form in which it runs there, if the processor is like this one; eagerly if that is wanted.

    Raises ConfigError for a GPU where there is no model.
    """
    form = choose(snapshot, trust, "cuda" if gpu else "cpu")
    if form.name is FormName.PLAIN:
        if gpu and not imports_torch(snapshot, form):
            name = snapshot.manifest.name
            raise ConfigError(f"{name} has no tensors, so a GPU is of no use to it; drop --gpu")
        return form
    if form.compiled is None or eager:
        return Chosen(FormName.EAGER)
    print(
        "note: the compiled form is for processors like this one and this torch; on others it runs "
        "eagerly, which needs more memory and the model's libraries: --eager provides for that",
        file=sys.stderr,
    )
    return form


def needs_of(
    snapshot: Snapshot,
    form: Chosen,
    trust: tuple[str, ...] = (),
    *,
    gpu: bool = False,
    memory_mb: int | None = None,
) -> Needs:
    """What the function needs in this form."""
    info = FunctionInfo.of(snapshot.manifest)
    nbytes = sum(segment.nbytes for segment in snapshot.manifest.segments)
    if form.compiled is not None and forms.CONSTANTS in form.compiled.files:
        nbytes += (form.compiled.path / forms.CONSTANTS).stat().st_size
    return estimate(
        info.settings,
        nbytes,
        form.name,
        name=info.name,
        snapshot=snapshot.path.name,
        trust=trust,
        gpu=gpu,
        memory_mb=memory_mb,
        processes=info.settings.instances[1] if info.kind is Kind.HTTP else 1,
        torch=imports_torch(snapshot, form),
    )


def rendered(platform: str, needs: Needs, place: Place) -> dict[str, str]:
    """File -> content of what ``platform`` is told. Raises ConfigError for what it cannot give."""
    known = values(platform, needs, place)
    templates = PLATFORMS[platform].templates
    return {name: render(template(path), known) for name, path in templates.items()}


def deploy(
    platform: str,
    text: str,
    *,
    dry_run: bool,
    out: Path | None,
    image: str,
    url: str,
    gpu: bool,
    eager: bool,
    memory_mb: int | None,
    named: tuple[str, ...],
) -> None:
    """Print what ``platform`` is told, or write it into the folder ``out``.

    Raises ConfigError without ``dry_run``: deploying is the vendor's tool's, and the error says how.
    """
    kind = PLATFORMS[platform]
    place = place_of(text, image, url)
    if not kind.asks and not (place.image and place.url):
        raise ConfigError(
            f"{platform} has to be told --image (what `zerowake bundle` has a Dockerfile for) and "
            "--url (where containers find the snapshot: s3://BUCKET/KEY, or a mounted folder)"
        )
    snapshot = opened(text)
    trust = trust_of(snapshot, named)
    form = form_of(snapshot, trust, gpu=gpu, eager=eager)
    needs = needs_of(snapshot, form, trust, gpu=gpu, memory_mb=memory_mb)
    made = rendered(platform, needs, place)
    for note in notes(platform, FunctionInfo.of(snapshot.manifest), place.url):
        print(f"note: {note}", file=sys.stderr)
    then = kind.then.format(out=out or "DIR", dns_name=needs.dns_name)
    if not dry_run:
        raise ConfigError(
            f"zerowake writes what {platform} is told and does not talk to it: add --dry-run "
            f"--out {out or 'DIR'}, look at what it wrote, then run  {then}"
        )
    if out is None:
        for name, content in made.items():
            if len(made) > 1:
                print(f"---- {name}")
            print(content, end="")
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (out / name).write_text(content)
        print(out / name)
    if kind.chart:
        with as_file(files("zerowake.adapters.deploy").joinpath("infra", "helm", "zerowake")) as it:
            shutil.copytree(it, out / "chart", dirs_exist_ok=True)
        print(out / "chart")
    print(f"then: {then}", file=sys.stderr)


def notes(platform: str, info: FunctionInfo, url: str) -> list[str]:
    """What the author should know of what was written, each in a sentence."""
    said = []
    scheme = url.partition("://")[0] if is_remote(url) else ""
    if scheme and scheme not in (*PLATFORMS[platform].reads, "http", "https"):
        named = _CREDENTIALS.get(scheme, f"what fsspec wants for {scheme}://")
        said.append(
            f"containers there have no right to read {scheme}:// by themselves: give them {named}, "
            "from the platform's secrets"
        )
    if platform == "azure":
        said.append(
            "whoever knows the app's address may call it: set external: false for callers of its "
            "environment only, or ask for a login (az containerapp auth)"
        )
    if info.settings.instances[1] == 1:
        said.append("at most one container runs; @function(instances=(0, 10)) lets it have ten")
    return said


def bundle(
    text: str,
    out: Path,
    *,
    platform: str,
    url: str,
    gpu: bool,
    eager: bool,
    inside: bool,
    extra: tuple[str, ...],
    declared: bool,
    named: tuple[str, ...],
) -> None:
    """Write the bundle of a snapshot into ``out`` and print what is in it.

    Raises ConfigError for a snapshot that is to be inside and fetched.
    """
    if inside and url:
        raise ConfigError("--url says where the snapshot is, --with-snapshot puts it in; name one")
    url = "" if inside else place_of(text, "", url).url
    snapshot = opened(text)
    trust = trust_of(snapshot, named)
    form = form_of(snapshot, trust, gpu=gpu, eager=eager)
    parts = bundles.bundle(
        snapshot,
        form,
        out,
        platform=platform,
        url=url,
        trust=trust,
        gpu=gpu,
        inside=inside,
        extra=extra,
        declared=declared,
    )
    rows = [(part.name, human_nbytes(part.nbytes), part.about) for part in parts]
    print(columns([("PART", "SIZE", ""), *rows]))
    print(f"form: {form.name}; {out}/Dockerfile builds it", file=sys.stderr)
