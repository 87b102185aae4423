# Throughput per core against that of one core, over core counts; 100 % is ideal. Data as for clusters.gp.
wide = 1000
high = 520
load folder."/common.gp"
set xlabel "cores of the server"
set ylabel "requests/s per core, share of one core's"
set yrange [0:1.2]
set format y "%.1f"
set key outside right
plot 1 with lines dt 2 lc rgb "#000000" title "ideal", \
     for [i=0:count-1] data using 1:(column(2+i)) with linespoints title word(names, i+1) lc style(i) pt style(i)
unset output
