# Memory of an idle connection: data has names, bytes and the numbers of colours.
wide = 800
high = 420
load folder."/common.gp"
set style fill pattern border -1
set boxwidth 0.7
set yrange [0:*]
set ylabel "bytes per idle connection"
set format y "%'.8g"
set xtics scale 0
unset key
plot data using 0:2:3:xtic(1) with boxes lc variable fs pattern 3, \
     data using 0:2:(sprintf("%d", $2)) with labels offset 0,0.7
unset output
