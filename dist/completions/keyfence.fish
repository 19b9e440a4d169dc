# Completion of keyfence in fish: fish reads this file at the first Tab after `keyfence`. What it completes comes from the program itself.
keyfence completions fish 2>/dev/null | source
