# Labels the connected pieces of the bright pixels of a TIFF's first plane; writes a 16-bit TIFF.
# usage: perl bright_pieces.pl IMAGE LABELS THRESHOLD
use strict;
use warnings;

my ($image, $out, $threshold) = @ARGV;
open(my $in, '<:raw', $image) or die "cannot open $image\n";
my $bytes = do { local $/; <$in> };
substr($bytes, 0, 4) eq "II*\0" or die "no little-endian TIFF\n";
my $at = unpack('V', substr($bytes, 4, 4));
my %tag;
for my $n (0 .. unpack('v', substr($bytes, $at, 2)) - 1) {
    my ($code, $type, $count, $value) = unpack('vvVV', substr($bytes, $at + 2 + 12 * $n, 12));
    $value &= 0xffff if $type == 3;
    $value = unpack('V', substr($bytes, $value, 4)) if $code == 273 && $count > 1;
    $tag{$code} = $value;
}
my ($w, $h, $offset) = @tag{256, 257, 273};
my @light = unpack('f<*', substr($bytes, $offset, 4 * $w * $h));

my @label = (0) x ($w * $h);
my $next = 0;
for my $start (0 .. $#light) {
    next if $label[$start] || $light[$start] <= $threshold;
    my @todo = ($start);
    $label[$start] = ++$next;
    while (defined(my $p = pop @todo)) {
        my ($y, $x) = (int($p / $w), $p % $w);
        for my $q ($y ? $p - $w : -1, $y < $h - 1 ? $p + $w : -1, $x ? $p - 1 : -1, $x < $w - 1 ? $p + 1 : -1) {
            next if $q < 0 || $label[$q] || $light[$q] <= $threshold;
            $label[$q] = $next;
            push @todo, $q;
        }
    }
}
print "found $next pieces\n";

my @tags = (
    [256, 4, 1, $w], [257, 4, 1, $h], [258, 3, 1, 16], [259, 3, 1, 1], [262, 3, 1, 1],
    [273, 4, 1, 8], [277, 3, 1, 1], [278, 4, 1, $h], [279, 4, 1, 2 * $w * $h],
);
open(my $to, '>:raw', $out) or die "cannot write $out\n";
print $to "II*\0", pack('V', 8 + 2 * $w * $h), pack('v*', @label);
print $to pack('v', scalar @tags), (map { pack('vvVV', @$_) } @tags), pack('V', 0);
