# Completion of keyfence in bash: bash-completion reads this file at the first Tab after `keyfence`. What it completes comes from the program itself.
eval "$(keyfence completions bash 2>/dev/null)"
