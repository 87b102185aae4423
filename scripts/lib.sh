# What the scripts beside this file share. Sourced, not run: it sets `root`, the folder of the repository.
# shellcheck shell=bash

# shellcheck disable=SC2034  # used by the scripts
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$(basename "$0")

# A line about what is being done. Standard error, so that standard output holds results only.
say() { printf '%s: %s\n' "$script" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# Bad usage: the message, where to read more, status 2.
usage_error() {
  say "$*"
  say "\"$script --help\" tells the usage"
  exit 2
}

# need_value OPTION [VALUE...]: ends with status 2 unless a value follows the option.
need_value() { (($# >= 2)) || usage_error "$1 needs a value"; }

# need_count OPTION VALUE: ends with status 2 unless the value is a whole number from 1 to 999999.
need_count() { [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || usage_error "$1 takes a whole number from 1 to 999999, not \"$2\""; }

# Prints the comment block at the head of the running script, which is its help text.
print_help() { awk 'NR == 1 { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$0"; }

# CPUs that this process may use; nproc respects its affinity.
usable_cpus() { nproc; }
