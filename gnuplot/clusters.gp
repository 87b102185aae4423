# Clustered bars with error bars (minimum to maximum, or an interval): data has a column of row names, then for each
# series value, low, high and marks ("-": none). Set: data, names (with blanks between), styles (their numbers), count,
# rows, ylabel, xlabel; and reference (a file, or "") with reference_title, reference_columns, reference_colours.
wide = reference eq "" && rows * count < 30 ? 1000 : 1500
high = 520
load folder."/common.gp"
set style data histograms
set style histogram errorbars gap 1.5 lw 1
set style fill pattern border -1
set boxwidth 0.9
set yrange [0:*]
set ylabel ylabel
set xlabel xlabel
set format y "%'.8g"
set key bmargin center horizontal
set bmargin 6
set xtics rotate by (rows > 8 ? -45 : 0) scale 0
if (reference ne "") { set multiplot layout 1,2 }
plot for [i=0:count-1] data using (column(2+4*i)):(column(3+4*i)):(column(4+4*i)):xtic(1) \
       title word(names, i+1) lc style(i) fs pattern pattern_of(i), \
     for [i=0:count-1] data using ($0 + (i - (count - 1) / 2.0) / (count + 1.5)):(column(4+4*i)):\
       (stringcolumn(5+4*i) eq "-" ? "" : stringcolumn(5+4*i)) with labels offset 0,0.7 font ",8" notitle
if (reference ne "") {
  set title reference_title noenhanced
  set style histogram clustered gap 1
  set style fill solid 0.25 noborder
  set ylabel "requests/s"
  set xlabel "GOMAXPROCS"
  set xtics rotate by -45
  plot for [i=2:reference_columns] reference using i:xtic(1) title columnheader(i) lc rgb word(reference_colours, i-1)
  unset multiplot
}
unset output
