import sys, time; from pathlib import Path
from cases import CASES; from workload import build_model
import measure
f=Path("/tmp/bench/model")
if not f.exists(): build_model(f)
names=sys.argv[2:]
if sys.argv[1]=="trl":
    from trl_side import TRLSide as S
else:
    from ours_side import OurSide as S
s=S(f,Path("/tmp/bench/scratch"))
for c in CASES:
    if c.name in names:
        t=time.time(); s.prepare(c); print(c.name,"prepare",time.time()-t)
        for _ in range(3): s.reset(); print(measure.seconds(s.run))
        s.reset()
        with measure.counted_work(s.models()) as w: s.run()
        print(dict(w))
        s.reset(); print(measure.peak_bytes(s.run)/2**20)
        l=s.logp(); print(None if l is None else l[:3,:3])
