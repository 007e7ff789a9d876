"""Where the shared options come from, and which of them a file of the working directory may not set."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiofinetune.cli._options import of_one_service
from aiofinetune.cli._shell import _logged
from tests.cli import ashell, objects, shell
from tests.servers.rawserver import KEY, Received, answering, reply, serve

MODELS = b'{"object": "list", "data": [{"id": "ada", "object": "model", "owned_by": "x\\u001b[2J", "created": 1}]}'
MINE, OTHER = "https://mine.test/v1", "https://other.test/v1"
NOTHING = {"base_url": None, "api_key_file": None, "dialect": None, "allow_plain_http": False, "local": False}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@pytest.fixture
def seen() -> list[Received]:
    """The requests that the service got."""
    return []


@pytest.fixture
async def url(seen: list[Received]) -> AsyncIterator[str]:
    """A service that has one model."""
    async with serve(answering(reply(body=MODELS), seen=seen)) as url:
        yield url


def own(text: str) -> Path:
    """Write the user's own configuration file."""
    path = Path("home/aiofinetune/config.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def keys(seen: list[Received]) -> list[str]:
    return [request.headers["authorization"].removeprefix("Bearer ") for request in seen]


async def test_the_environment_of_openai_is_enough(url: str, seen: list[Received]) -> None:
    """OPENAI_BASE_URL and OPENAI_API_KEY reach the service, as they do in code; control characters are not shown."""
    result = await ashell("models", url=url)
    assert (result.exit_code, result.stderr, keys(seen)) == (0, "", [KEY])
    assert result.stdout.split()[:4] == ["model", "created", "owner", "ada"]
    assert "\x1b" not in result.stdout
    assert objects(await ashell("models", "--json", url=url))[0]["owned_by"] == "x\x1b[2J"


async def test_options_go_before_variables_and_these_before_files(url: str, seen: list[Received]) -> None:
    """Of a key file named on the command line, in a variable and in a file, the first that is named counts."""
    for name in ("option", "variable", "file"):
        Path(f"{name}.key").write_text(f"key-of-the-{name}\nsecond line\n")
    own(f'base_url = "{url}"\napi_key_file = "../../file.key"\n')
    for arguments in (["--api-key-file", "option.key"], []):
        result = await ashell("models", *arguments, url="", key="", AIOFINETUNE_API_KEY_FILE="variable.key")
        assert result.exit_code == 0, result.stderr
    # A file's key goes to its own base URL before that of the environment, for that may be for another service.
    assert (await ashell("models", url="", key=KEY)).exit_code == 0
    assert (await ashell("models", url="", key=KEY, AIOFINETUNE_API_KEY="key-of-the-command")).exit_code == 0
    assert keys(seen) == ["key-of-the-option", "key-of-the-variable", "key-of-the-file", "key-of-the-command"]


async def test_a_configuration_file_that_is_named_takes_the_place_of_ones_own(url: str) -> None:
    """--config FILE counts in place of the user's own file; its paths are relative to it."""
    own('base_url = "https://nowhere.test/v1"\n')
    Path("elsewhere").mkdir()
    Path("elsewhere/key").write_text(KEY)
    Path("elsewhere/my.toml").write_text(f'base_url = "{url}"\napi_key_file = "key"\njson = true\n')
    result = await ashell("models", "--config", "elsewhere/my.toml", url="", key="")
    assert [model["id"] for model in objects(result)] == ["ada"]


@pytest.mark.parametrize(
    "line",
    [
        *(f'base_url = "{OTHER}"', 'dialect = "nebius"', 'api_key_file = "/etc/hostname"', 'log_file = "~/.bashrc"'),
        *("allow_plain_http = true", "local = true", 'local_data = "x"'),
    ],
)
async def test_a_working_directory_cannot_say_where_the_key_goes(url: str, seen: list[Received], line: str) -> None:
    """A file found in the working directory that names a service, a key or a file to write ends the command."""
    Path(".aiofinetune.toml").write_text(f"{line}\n")
    result = await ashell("models", url=url)
    assert (result.exit_code, seen) == (2, [])
    assert "may not be set by a file of the working directory" in " ".join(result.stderr.split())
    Path(".aiofinetune.toml").write_text("json = true\nretries = 1\n")
    assert objects(await ashell("models", url=url))


def test_a_relative_configuration_folder_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_CONFIG_HOME=. does not make the working directory the user's own."""
    own("timeout = 'wrong'")
    monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    assert shell("models", "--retries", 0, XDG_CONFIG_HOME="home").exit_code == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base_url", "config.toml: "),
        ('bass_url = "x"', "'bass_url' is not a setting"),
        ('api_key = "secret"', "'api_key' is not a setting"),
        ("timeout = 'soon'", "'soon'"),
        ("timeout = 0", "0"),
    ],
)
def test_a_wrong_configuration_file_is_named(text: str, words: str) -> None:
    """What is wrong with a configuration file is wrong use, and nothing is sent."""
    own(text)
    result = shell("models")
    assert (result.exit_code, words in result.stderr) == (2, True)
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        (
            "\nretries = 'many'",
            {},
            "'many' is not a valid integer range. It comes from home/aiofinetune/config.toml, line 2.",
        ),
        ("dialekt = 'jobs'", {}, "home/aiofinetune/config.toml, line 1: 'dialekt' is not a setting"),
        ("retries = 1\ndialect = 'x'", {}, "home/aiofinetune/config.toml, line 2, dialect: expected"),
        (
            "",
            {"AIOFINETUNE_RETRIES": "many"},
            "'many' is not a valid integer range. It comes from AIOFINETUNE_RETRIES.",
        ),
        (
            "",
            {"AIOFINETUNE_TIMEOUT": "nan"},
            "expected a number, got 'nan'. It comes from AIOFINETUNE_TIMEOUT.",
        ),
        ("", {"AIOFINETUNE_DIALECT": "x"}, "AIOFINETUNE_DIALECT: expected"),
        ("", {"url": "nowhere"}, "OPENAI_BASE_URL: expected a URL"),
    ],
)
def test_a_wrong_value_names_where_it_comes_from(text: str, environment: dict[str, str], words: str) -> None:
    """A value that is wrong is said to be of a variable, or of a line of a file, if it is not on the command line."""
    own(text)
    result = shell("models", XDG_CONFIG_HOME=str(Path("home").absolute()), **environment)
    assert result.exit_code == 2
    assert words.replace("home/", f"{Path('home').absolute()}/") in " ".join(result.stderr.split())


async def test_the_key_of_a_file_goes_to_no_other_service(url: str, seen: list[Received]) -> None:
    """With another base URL than that of the file, the key of the environment is used, or none."""
    Path("file.key").write_text("key-of-the-file")
    own(f'base_url = "{MINE}"\napi_key_file = "../../file.key"\ndialect = "jobs"\n')
    assert (await ashell("models", "--base-url", url, url="")).exit_code == 0
    assert (await ashell("models", url=url)).exit_code == 0
    assert (await ashell("models", url="", AIOFINETUNE_BASE_URL=url)).exit_code == 0
    result = await ashell("models", "--base-url", url, url="", key="")
    assert (result.exit_code, "there is no key" in result.stderr) == (2, True)
    assert keys(seen) == [KEY] * 3


def test_what_a_file_says_of_a_service_counts_for_no_other() -> None:
    """The key, the dialect and the permission of a file go with its base URL, not with another one."""
    file = {"base_url": MINE, "api_key_file": "k", "dialect": "jobs", "allow_plain_http": True}
    given = {**NOTHING, **file}
    dropped = {**NOTHING, "allow_plain_http": None}
    assert of_one_service(given, file, MINE, {"OPENAI_API_KEY": "e"}) == given
    assert of_one_service(given, file, MINE, {"OPENAI_BASE_URL": MINE}) == {**given, "base_url": None}
    assert of_one_service(given, file, MINE, {"OPENAI_BASE_URL": OTHER}) == dropped
    rest = [name for name in file if name != "base_url"]
    assert of_one_service({**given, "base_url": OTHER}, rest, MINE, {}) == {**dropped, "base_url": OTHER}
    assert of_one_service({**given, "base_url": MINE}, rest, MINE, {"OPENAI_BASE_URL": OTHER}) == given
    assert of_one_service({**given, "local": True}, file, MINE, {})["api_key_file"] is None


def test_a_key_file_without_a_base_url_is_the_last_resort() -> None:
    """A file that names only a key is used where the environment has none."""
    given = {**NOTHING, "api_key_file": "k"}
    assert of_one_service(given, ["api_key_file"], None, {"OPENAI_API_KEY": "e"})["api_key_file"] is None
    assert of_one_service(given, ["api_key_file"], None, {})["api_key_file"] == "k"


async def test_a_key_on_the_command_line_is_warned_about(url: str, seen: list[Received]) -> None:
    """A key in the list of processes is used, with a warning; one in a variable is not warned about."""
    result = await ashell("models", "--api-key", "key-that-all-can-see", url=url)
    assert (result.exit_code, keys(seen)) == (0, ["key-that-all-can-see"])
    assert "--api-key-file" in result.stderr
    assert "key-that" not in result.stderr
    assert not (await ashell("models", url=url, AIOFINETUNE_API_KEY="key-that-few-see")).stderr


@pytest.mark.parametrize("content", [None, b"", b"\n" + KEY.encode(), b"\xff"])
def test_a_key_file_that_holds_no_key(content: bytes | None) -> None:
    """A missing, empty or unreadable key file is one line, with the status of a local file that is wrong."""
    if content is not None:
        Path("key").write_bytes(content)
    result = shell("models", "--api-key-file", "key")
    assert (result.exit_code, result.stderr.count("aiofinetune: --api-key-file: ")) == (5, 1)


def test_errors_are_one_line_and_the_way_out() -> None:
    """A service that is not there is one line and advice; -vv shows the traceback, without the key."""
    result = shell("models", "--retries", 0)
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 2)
    assert "could not connect" in result.stderr
    result = shell("models", "--retries", 0, "-vv")
    assert "Traceback" in result.stderr
    assert KEY not in result.stderr
    assert shell("models", url="http://service.test/v1").exit_code == 2
    assert "--allow-plain-http" in shell("models", url="http://service.test/v1").stderr
    assert "SOCKS is not supported" in shell("models", url=MINE, https_proxy="socks5://127.0.0.1:9").stderr
    assert "--local" in shell("models", key="").stderr


async def test_what_is_retried_is_logged() -> None:
    """-v logs retries on stderr, and --log-file with times; neither leaves a handler behind; -q is silent."""
    async with serve(answering(reply(500, b"\x1b[2Joops"), reply(body=MODELS))) as url:
        result = await ashell("models", "-v", "--log-file", "log.txt", url=url)
    assert result.exit_code == 0
    (line,) = (line for line in Path("log.txt").read_text().splitlines() if "failure 1" in line)
    assert "INFO aiofinetune: GET /models" in line
    assert line[:2] == "20"
    assert "aiofinetune: GET /models" in result.stderr
    assert not any("\x1b" in text for text in (line, result.stderr))
    assert not logging.getLogger("aiofinetune").handlers
    result = shell("models", "--log-file", "nowhere/log.txt")
    assert (result.exit_code, "--log-file: the folder nowhere does not exist" in result.stderr) == (2, True)


def test_a_log_for_which_there_is_no_room_is_told_once() -> None:
    """A command goes on where its log cannot be written."""
    screen = io.StringIO()
    with _logged(logging.StreamHandler(screen), Path("/dev/full")):
        for _ in range(2):
            logging.getLogger("aiofinetune").error("lost")
    assert screen.getvalue().splitlines() == [
        *("lost", "/dev/full: No space left on device; the log is not written", "lost")
    ]


def test_each_option_has_one_name() -> None:
    """Options are written with hyphens; one that is written as in OpenAI's old command line is pointed to."""
    result = shell("models", "--base_url", MINE)
    assert (result.exit_code, "Did you mean '--base-url'?" in result.stderr) == (2, True)


def test_help_lists_the_shared_options_after_the_commands_own() -> None:
    """Each command's help has its own options, the shared ones, and examples."""
    words = shell("cancel", "--help").stdout
    own, _, shared = words.partition("Shared options:")
    assert "--help" in own
    assert "JOB..." not in own.partition("Options:")[2]
    assert all(f"--{name}" in shared for name in ("base-url", "api-key-file", "json", "config", "no-color"))
    assert "aiofinetune cancel ft-abc123" in shared
