"""The paper's experiment: Table 1's protocol, and a fair comparison by frontiers, on the demo base or on your own.

    python benchmarks/paper/run.py                   # everything; goes on after a break, finished rows are kept
    python benchmarks/paper/run.py --quick           # the same tables from fewer seeds and steps, about 15 minutes
    python benchmarks/paper/run.py --table           # tables and plots of whatever is finished; runs nothing
    python benchmarks/paper/run.py --whole --base sd15 --extractor clip-vit-large-patch14 \\
        --creatures pokemon --garments dresses --flat-lays clothes --plain photos     # the paper's own sizes

A folder holds pictures and captions (name.png, name.txt). Nothing is downloaded.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.paper import scale as scales  # noqa: E402
from benchmarks.paper.jobs import PARTS, Store, plan  # noqa: E402
from benchmarks.paper.scale import Scale  # noqa: E402
from benchmarks.paper.tables import report  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    size = scales.QUICK if options.quick else scales.WHOLE if options.whole else scales.DEMO
    out = options.out or HERE / ("quick" if options.quick else "results")
    if not options.table:
        run(options, size, Store(out).opened(size))
    report(Store(out), size, out, HERE if options.page else None)


def run(options: argparse.Namespace, size: Scale, store: Store) -> None:
    """Every job that is not finished yet, in the order of the plan."""
    from benchmarks.paper.bench import Bench, Setup
    from benchmarks.paper.data import Folders
    from benchmarks.paper.fit import after, fit, long
    from benchmarks.paper.table1 import table1
    from trilora.metrics import extractors

    kinds = {"fit": fit, "after": after, "long": long, "table1": table1}
    folders = Folders(options.creatures, options.garments, options.flat_lays, options.plain)
    seen = extractors.clip(options.extractor) if options.extractor else extractors.demo(ROOT / "demo" / "judge")
    bench, parts = Bench(Setup(options.base, store.folder, folders, size, seen)), plan(size, store)
    for part in options.rows:
        for job in parts[part]():
            if store.result(job) is None:
                begin = time.monotonic()
                store.put(job, kinds[job.kind](bench, job, store))
                print(f"{time.strftime('%H:%M:%S')} {part}: {job.name} {time.monotonic() - begin:.0f} s", flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer seeds and steps")
    size.add_argument("--whole", action="store_true", help="the paper's own sizes: 512 pixels, 100 pictures an epoch")
    parser.add_argument("--rows", nargs="*", choices=PARTS, default=PARTS, help="which parts, in this order")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--page", action="store_true", help="write the tables into this folder's README.md too")
    parser.add_argument("--out", type=Path, help="folder of results; a row that lies there is not run again")
    parser.add_argument("--base", type=Path, default=ROOT / "demo/base", help="diffusers folder or .safetensors file")
    parser.add_argument("--extractor", type=Path, help="folder of a CLIP; the drawn world's own network without it")
    for name in ("creatures", "garments", "flat-lays", "plain"):
        parser.add_argument(f"--{name}", type=Path, help="folder of pictures and captions; drawn without it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
