# What the charts share. Set by scripts/plot with -e: output, term (png or svg), title, sub (machine and date).
if (term eq "svg") {
  set terminal svg size wide,high dynamic noenhanced font "DejaVu Sans,12" background "white"
} else {
  set terminal pngcairo size wide,high noenhanced font "DejaVu Sans,10"
}
set output output
set encoding utf8
# Colours of M. Okabe and K. Ito, which people with any colour vision can tell apart; patterns do the rest.
array colours[8] = ["#0072B2", "#999999", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442"]
array patterns[8] = [3, 1, 2, 6, 4, 5, 7, 3]
do for [i=1:8] { set linetype i lc rgb colours[i] lw 2 pt i }
set linetype cycle 8
# Of the i-th of names, from 0: its number among all servers, which gives its colour, and its pattern. The ninth has the
# colour of the first and another pattern.
style(i) = int(word(styles, i+1))
pattern_of(i) = patterns[(style(i) - 1 + (style(i) - 1) / 8) % 8 + 1]
set datafile missing "NaN"
set grid ytics lc rgb "#dddddd"
set border 3
set tics nomirror
set title title."\n".sub noenhanced
