# Latency percentiles, one curve per server: blocks of data with 1/(1 - share) and microseconds. Set: data, names, styles,
# count.
wide = 1000
high = 520
load folder."/common.gp"
set logscale xy
set xlabel "percentile (log scale of the rest)"
set ylabel "latency from the intended time of sending, us"
set xtics ("50%%" 2, "90%%" 10, "99%%" 100, "99.9%%" 1000, "99.99%%" 10000, "99.999%%" 100000)
set format y "%g"
set key left top
set rmargin 5
plot for [i=0:count-1] data index i using 1:2 with linespoints title word(names, i+1) lc style(i) pt style(i) ps 0.6
unset output
