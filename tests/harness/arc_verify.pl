#!/usr/bin/perl
# An independent ARC verifier for the tests: Mail::DKIM::ARC::Verifier (Debian: libmail-dkim-perl).
# Usage: arc_verify.pl PORT FILE...   (DNS is at 127.0.0.1:PORT)
# Prints one line a file: result, TAB, detail.
use strict;
use warnings;
use Mail::DKIM::ARC::Verifier;
use Mail::DKIM::DNS;
use Net::DNS::Resolver;

my $port = shift @ARGV;
Mail::DKIM::DNS::resolver(
    Net::DNS::Resolver->new(
        nameservers => ['127.0.0.1'],
        port        => $port,
        recurse     => 1,
        udp_timeout => 5,
    )
);

for my $file (@ARGV) {
    open my $handle, '<:raw', $file or die "$file: $!";
    local $/;
    my $message = <$handle>;
    close $handle;
    my $verifier = Mail::DKIM::ARC::Verifier->new();
    $verifier->PRINT($message);
    $verifier->CLOSE();
    my $detail = $verifier->result_detail // '';
    $detail =~ s/\s+/ /g;
    print $verifier->result, "\t", $detail, "\n";
}
