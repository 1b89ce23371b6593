r"""The command ``completion``, and its scripts for bash, zsh and fish.

The problem: each shell splits a line into words in its own way, and bash splits words as well (at ``@``,
``:`` and ``=``). If the command got the shell's words, it could not complete ``@last``.

The idea: a script passes the line up to the cursor as it was typed. The command splits it itself, and
prints what the last word can be, one candidate a line, with a tab before its description. The script only
brings these lines into the form that its shell wants. If there are none, the shell completes file names,
unless the only line is an empty candidate, a tab: then the word is the name of something on the server.

The variables are those of typer for fish, whose lines have this form.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

from jobserver_cli.options import argument


class Shell(str, Enum):
    """The shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_ASK = "env _JOBSERVER_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS="

BASH = r"""_jobserver() {
    local line="${COMP_LINE:0:COMP_POINT}" last before="" mark value about shown room
    local files=yes values=() abouts=()
    # In quotes, bash replaces what follows the quote, and closes it.
    local quote="${COMP_WORDS[COMP_CWORD]:0:1}"
    while IFS= read -r shown; do
        [[ "$shown" != $'\t' ]] || files=
        IFS=$'\t' read -r value about <<<"$shown"
        case "$quote" in
            \') value="${value//\'/\'\\\'\'}" ;;
            \") for mark in '\' '"' '$' '`'; do value="${value//"$mark"/"\\$mark"}"; done ;;
            *) [[ -n "$value" ]] && value="$(printf %q "$value")" ;;
        esac
        [[ -n "$value" ]] || continue
        values+=("$value")
        abouts+=("$about")
    done < <(<ask>"$line" "${1/#\~/$HOME}" 2>/dev/null </dev/null)
    # Bash replaces only what follows the last : or =, or begins with the last @: drop what precedes it.
    [[ "$line" =~ (([^[:space:]\\]|\\.)*)$ && "$quote" != [\'\"] ]] && last="${BASH_REMATCH[1]}"
    for mark in @ : =; do
        if [[ "$COMP_WORDBREAKS" == *"$mark"* && "$last" == *"$mark"* ]]; then
            value="${last%"$mark"*}${mark#@}"
            [[ ${#value} -gt ${#before} ]] && before="$value"
        fi
    done
    # A description is for a list of candidates, and not to be put into the line.
    [[ ${#values[@]} -lt 2 || "$COMP_TYPE" == 37 || "$COMP_TYPE" == 42 ]] && abouts=()
    COMPREPLY=()
    [[ -n "$files" ]] || compopt +o default 2>/dev/null  # the bash of macOS has no compopt
    for mark in "${!values[@]}"; do
        shown="${values[mark]#"$before"}"
        room=$((${COLUMNS:-80} - ${#shown} - 4))
        [[ $room -gt 0 && -n "${abouts[mark]}" ]] && shown="$shown  (${abouts[mark]:0:room})"
        COMPREPLY+=("$shown")
    done
}
complete -o default -o nosort -F _jobserver jobserver 2>/dev/null ||
    complete -o default -F _jobserver jobserver
"""

ZSH = r"""#compdef jobserver
_jobserver() {
    local line value about files=yes program="${words[1]/#\~/$HOME}"
    local typed="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX"
    local -a found
    for line in "${(@f)$(<ask>"$typed" "$program" 2>/dev/null </dev/null)}"; do
        value="${line%%$'\t'*}"
        about="${line#"$value"}"
        [[ "$line" = $'\t' ]] && files=
        [[ -n "$value" ]] && found+=("${value//:/\\:}${about:+:${about#$'\t'}}")
    done
    [[ "$PREFIX" = --*=* ]] && compset -P '*='
    if (( ${#found} )); then
        _describe -V jobserver found
    elif [[ -n "$files" ]]; then
        _files
    fi
}
if [[ "$funcstack[1]" = _jobserver ]]; then
    _jobserver
else
    compdef _jobserver jobserver
fi
"""

FISH = r"""function __jobserver
    set -l program (commandline -opc)[1]
    set -l found (<ask>(commandline -cp) $program 2>/dev/null </dev/null)
    if test "$found[1]" = \t
        return
    else if test -n "$found[1]"
        set -l option (string match -r '^--[^=]+=' -- (commandline -ct))
        printf '%s\n' "$option"$found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c jobserver --no-files --keep-order --arguments '(__jobserver)'
"""

_SCRIPTS = {Shell.BASH: BASH, Shell.ZSH: ZSH, Shell.FISH: FISH}


def completion(
    shell: Annotated[Shell, argument("bash|zsh|fish", "The shell.")],
) -> None:
    """Print the script that completes this command in a shell: commands, options, and names on the server.

    For bash, add the first line below to ~/.bashrc. For zsh, ~/.zfunc must be in fpath before compinit runs.
    Create the directories of zsh and fish first if they do not exist.

    Examples:
        eval "$(jobserver completion bash)"
        jobserver completion zsh > ~/.zfunc/_jobserver
        jobserver completion fish > ~/.config/fish/completions/jobserver.fish
    """
    sys.stdout.write(_SCRIPTS[shell].replace("<ask>", _ASK))
