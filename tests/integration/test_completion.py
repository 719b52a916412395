#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What bash, zsh and fish propose for a command line of sluice. The last two come from Debian's packages, unpacked under
build/peers."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time

from harness import PATIENCE, SLUICE, Skip, case, equal, main, new_root, write
from peers import PEERS, fetch, peer_environment

HERE = new_root()
os.mkdir(os.path.join(HERE, "folder"))
write(HERE, "file.conf")
write(HERE, "a name with spaces.txt")
SCRIPTS = new_root()
TREE = os.path.join(PEERS, "root")
COMMANDS = ["cp", "doctor", "fanout", "proxy", "serve", "trace"]


def script(shell):
    """The path of the script."""
    path = os.path.join(SCRIPTS, shell)
    if not os.path.exists(path):
        with open(path, "wb") as file:
            subprocess.run([SLUICE, "completion", shell], check=True, stdout=file)
    return path


def said(command, **more):
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=20 * PATIENCE, **more)
    equal((done.returncode, done.stderr), (0, ""), "exit code and errors")
    return done.stdout.splitlines()


def ask_bash(line, separators="="):
    """As readline does: words of the line, the last of which is to be completed; each separator is a word."""
    if not shutil.which("bash"):
        raise Skip("needs bash: apt-get install bash")
    words = [word for word in re.split("( |%s)" % separators if separators else "( )", line) if word.strip()]
    if line.endswith(" "):
        words.append("")
    ask = 'source %s; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _sluice; printf "%%s\\n" "${COMPREPLY[@]}"'
    return sorted(word for word in said(["bash", "--norc", "-c", ask % script("bash"), "bash", *words]) if word)


def ask_fish(line):
    fetch("fish")
    home = new_root()
    # A tree that fish finds beside its program, as it finds /usr/share and /etc beside /usr/bin.
    os.makedirs(os.path.join(TREE, "usr/etc/fish"), exist_ok=True)
    ask = 'source %s; complete -C "$argv[1]"' % script("fish")
    lines = said([os.path.join(TREE, "usr/bin/fish"), "--no-config", "-c", ask, line],
                 env={**peer_environment(), "HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home})
    return sorted(each.partition("\t")[0] for each in lines)


ZSH_SETUP = """
module_path=(MODULES) fpath=(TREE/usr/share/zsh/functions/**/*(/))
autoload -Uz compinit && compinit -D -u
source SCRIPT
unsetopt auto_list auto_menu # a list that is long would be asked about
# What is offered goes to a file: matches, and how they are shown.
compadd() {
    local -a hits
    local i
    builtin compadd "$@"
    local result=$?
    [[ ${(M)@:#-[OAD]} ]] && return result
    builtin compadd -A hits "$@"
    print -rl -- $hits >>TOLD
    for ((i = 1; i < $#; i++)); do
        [[ ${@[i]} != -*d ]] || print -rl -- ${(P)${@[i + 1]}} >>TOLD
    done
    return result
}
ask() {
    zle complete-word
    print -r -- "LINE $BUFFER" >>TOLD
    BUFFER=
}
zle -N ask
bindkey '^I' ask
print READY >>TOLD
"""


class Zsh:
    """An interactive zsh on a terminal, where what is typed is completed."""

    def __init__(self):
        fetch("zsh")
        modules = os.path.join(TREE, "usr/lib", os.uname().machine + "-linux-gnu", "zsh")
        self.told = os.path.join(SCRIPTS, "told")
        setup = ZSH_SETUP
        for name, path in (("MODULES", os.path.join(modules, os.listdir(modules)[0])), ("TREE", TREE),
                           ("SCRIPT", script("zsh")), ("TOLD", self.told)):
            setup = setup.replace(name, path)
        write(SCRIPTS, ".zshrc", data=setup.encode())
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.chdir(HERE)
            os.execve(os.path.join(TREE, "bin/zsh"), ["zsh", "-d", "-i"],
                      {**peer_environment(), "TERM": "dumb", "ZDOTDIR": SCRIPTS, "HOME": SCRIPTS})
        self.until("READY")

    def until(self, beginning):
        """All lines that were told, when one begins like that."""
        deadline = time.monotonic() + 20 * PATIENCE
        while True:
            ready, _, _ = select.select([self.terminal], [], [], 0.01)  # what it shows may not fill the terminal
            shown = os.read(self.terminal, 65536) if ready else b""
            with contextlib.suppress(FileNotFoundError), open(self.told, encoding="utf-8") as file:
                lines = file.read().splitlines()
                if any(line.startswith(beginning) for line in lines):
                    os.unlink(self.told)
                    return lines
            assert time.monotonic() < deadline, "no %s from zsh: %r" % (beginning, shown)

    def offers(self, line):
        """What there is for this line, then a tab; the last item is LINE and what the line has become."""
        os.write(self.terminal, (line + "\t").encode())
        return self.until("LINE")

    def close(self):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.terminal)


def options_of(command):
    text = subprocess.run([SLUICE, command, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    found = set()
    for name in re.finditer(r"^ {2,6}(?:-\w, )?--(\[no-\])?([a-z][a-z0-9-]*)", text, re.MULTILINE):
        found.update(["--" + name[2]] + (["--no-" + name[2]] if name[1] else []))
    return found


for shell, ask in (("bash", ask_bash), ("fish", ask_fish)):
    @case("%s proposes the commands", shell)
    def commands(_, ask=ask):
        equal([word for word in ask("sluice ") if not word.startswith("-")], COMMANDS)
        equal(ask("sluice se"), ["serve"])

    @case("%s proposes every option that --help lists, of every command", shell)
    def options(_, ask=ask):
        for command in COMMANDS:
            proposed = {word for word in ask("sluice %s --" % command) if word.startswith("--")}
            equal(proposed ^ options_of(command) - {"--"}, set(), command)

    @case("%s proposes the choices of an option, and files, directories or nothing, by what it takes", shell)
    def values(_, ask=ask):
        equal(ask("sluice proxy --balance "), ["consistent", "least-connections", "round-robin", "source"])
        equal([word.removeprefix("--balance=") for word in ask("sluice proxy --balance=s")], ["source"])
        assert "file.conf" in ask("sluice serve --access-log f")
        equal([word.rstrip("/") for word in ask("sluice serve f")], ["folder"])
        equal([word.rstrip("/") for word in ask("sluice cp f")], ["file.conf", "folder"])
        equal(ask("sluice proxy --listen "), [])
        equal(ask("sluice proxy f"), [])
        for command, sure in (("serve", {"auto", "copy", "mmap", "sendfile", "splice", "direct"}),
                              ("cp", {"auto", "copy", "copy_file_range", "reflink"}), ("fanout", {"auto", "copy", "tee"})):
            proposed = set(ask("sluice %s --route " % command))
            assert sure <= proposed and not {"vmsplice", "tcp_receive"} & proposed, (command, proposed)
        equal([word.removeprefix("--route=") for word in ask("sluice serve --route=sen")], ["sendfile"])

    @case("%s proposes no options after --, and to sluice trace a command to run", shell)
    def after_dashes(_, ask=ask):
        equal([word.rstrip("/") for word in ask("sluice cp -- f")], ["file.conf", "folder"])
        equal([word for word in ask("sluice cp -- --ver") if word == "--verify"], [])
        assert "true" in ask("sluice trace -- tru")


@case("bash proposes names with spaces as one word, and --name=value also where = separates no words")
def bash_words():
    equal(ask_bash("sluice cp a"), ["a name with spaces.txt"])
    equal(ask_bash("sluice proxy --balance=s", separators=""), ["--balance=source"])


@case("zsh proposes commands, options with what they are for, choices, files and directories")
def zsh():
    shell = Zsh()
    try:
        offers = shell.offers("sluice ")
        equal([name for name in COMMANDS if name not in offers], [])
        assert any("serve the files of a directory" in line for line in offers), offers
        for command in COMMANDS:
            offers = [line.partition("=")[0] for line in shell.offers("sluice %s --" % command)]
            equal([name for name in options_of(command) if name not in offers], [], command)
        offers = shell.offers("sluice serve --l")
        assert any("where to accept connections" in line for line in offers), offers
        offers = shell.offers("sluice proxy --balance ")
        equal([name for name in ("consistent", "least-connections", "source") if name not in offers], [])
        for line, completed in (("sluice proxy --balance=s", "sluice proxy --balance=source"),
                                ("sluice serve --access-log=fi", "sluice serve --access-log=file.conf"),
                                ("sluice serve f", "sluice serve folder/"),
                                ("sluice cp a", "sluice cp a\\ name\\ with\\ spaces.txt"),
                                ("sluice cp -- --veri", "sluice cp -- --veri"),
                                ("sluice trace -- truncat", "sluice trace -- truncate")):
            equal(shell.offers(line)[-1].strip(), "LINE " + completed)
        equal(shell.offers("sluice proxy --listen ")[-1].strip(), "LINE sluice proxy --listen")
    finally:
        shell.close()


@case("a shell that there is no script for: exit code 2, and which there are")
def unknown():
    for arguments in ([], ["csh"], ["bash", "zsh"]):
        done = subprocess.run([SLUICE, "completion", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
        equal((done.returncode, done.stdout), (2, ""))
        assert "bash, zsh or fish" in done.stderr


if __name__ == "__main__":
    main()
