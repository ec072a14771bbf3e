"""Numbers for pictures: FID, NFID, CLIP score, and the networks whose features they are made of."""
