"""What a hundred million songs cost: throughput, memory, scheduling, and a price from them."""
