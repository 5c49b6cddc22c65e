"""The page's look and its few lines of script: fixed texts, so that the policy can name the script by its digest."""

from __future__ import annotations

from .result import _COLOURS

__all__ = ["CSS", "SCRIPT"]

_LIGHT = "".join(f".k{i}{{fill:{c};color:{c}}}" for i, c in enumerate(_COLOURS))

CSS = (
    """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#fff;--card:#f5f7f9;--line:#dde1e6;
--accent:#005a8d;--blue:#0072b2;--warn:#b34700}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a3abb5;--paper:#14171b;--card:#1e2329;--line:#373e47;
--accent:#7cc4f0;--blue:#4a90d9;--warn:#ffab70}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3.2rem}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
header,main,footer{max-width:64rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.2rem}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .2rem}
h2{font-size:1.25rem;margin:0 0 .6rem}
section{padding:1.1rem 0 .4rem}
section+section{border-top:1px solid var(--line)}
p{margin:.4rem 0 .8rem;max-width:46rem}
ul.points{margin:.4rem 0 1rem;padding-left:1.2rem;max-width:46rem}
.points li{margin:.25rem 0}
.sub,.note,figcaption,footer{color:var(--soft)}
.note{border-left:3px solid var(--line);padding-left:.7rem;font-size:.92rem}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
nav{position:sticky;top:0;z-index:2;background:var(--paper);border-bottom:1px solid var(--line)}
nav ul{display:flex;gap:1.1rem;list-style:none;margin:0 auto;padding:.5rem 1rem;max-width:64rem;overflow-x:auto;
white-space:nowrap;scrollbar-width:thin}
nav a{text-decoration:none;font-size:.92rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15.5rem),1fr));gap:.7rem;list-style:none;
margin:.4rem 0 1rem;padding:0}
.cards li{background:var(--card);border-radius:.5rem;padding:.7rem .9rem}
.cards p{margin:0}
.q{font-size:.85rem;color:var(--soft)}
.a{font-size:1.12rem;font-weight:600;line-height:1.3;margin:.1rem 0 .25rem!important}
.d{font-size:.88rem}
.wide{overflow-x:auto;max-width:100%;margin:.4rem 0 1rem}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:break-word}
.cap{font-size:.9rem;margin-bottom:.2rem;color:var(--soft)}
th,td{padding:.28rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top;unicode-bidi:isolate}
td,tbody th{min-width:2.6rem;max-width:22rem}
thead th{font-weight:600;white-space:nowrap}
tbody th{font-weight:500}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.matrix{font-size:.84rem}
.matrix th,.matrix td{padding:.22rem .3rem;border:0}
.matrix td,.matrix thead th{min-width:1.75rem;white-space:nowrap;text-align:center;font-variant-numeric:tabular-nums}
.matrix td{border:1px solid var(--paper);background:rgb(213 94 0/var(--s,0))}
.matrix td.right{background:rgb(0 114 178/var(--s,0))}
.matrix td.zero{color:var(--soft)}
.matrix tbody th{max-width:9rem;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;position:sticky;left:0;
background:var(--paper)}
.plots{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:.4rem 0 1rem}
.plot{flex:1 1 20rem;max-width:34rem;min-width:0}
.plot svg,.plot img{display:block;width:100%;height:auto;fill:currentColor;font-family:inherit}
.plot svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif!important}
.plot svg *{stroke-linejoin:round;stroke-linecap:butt}
.plot img{background:#fff;border-radius:.3rem}
figcaption{font-size:.9rem;margin-bottom:.3rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.3rem,1fr));gap:.7rem .6rem;list-style:none;
margin:.4rem 0 1rem;padding:0;font-size:.78rem;line-height:1.3}
.gallery li,.strip li{min-width:0}
.gallery span,.strip span,.tip span{display:block;unicode-bidi:isolate}
.id{color:var(--soft);white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.p{display:block;width:96px;height:96px;max-width:100%;background:center/contain no-repeat;border-radius:.3rem;
margin-bottom:.2rem;-webkit-print-color-adjust:exact;print-color-adjust:exact}
.p.none{border:1px dashed var(--line);color:var(--soft);font-size:.7rem;padding:.3rem}
.wrong{color:var(--warn);font-weight:600}
.strip{display:flex;gap:.5rem;overflow-x:auto;list-style:none;margin:0;padding:.5rem 0;font-size:.78rem;line-height:1.3;
border-bottom:1px solid var(--line)}
.strip li{flex:0 0 6.1rem}
.strip li:first-child{border-right:2px solid var(--line);margin-right:.2rem;padding-right:.3rem;flex-basis:6.6rem}
.strips{margin:.4rem 0 1rem}
dl.facts{display:grid;grid-template-columns:fit-content(40%) minmax(0,1fr);gap:.2rem 1rem;font-size:.9rem;
margin:.4rem 0 1rem}
.facts dt{color:var(--soft)}
.facts dd{margin:0}
.cloud{position:relative;max-width:46rem}
.cloud svg{display:block;width:100%;height:auto;background:var(--card);border-radius:.5rem;touch-action:pan-y;
cursor:crosshair}
.cloud g{opacity:.85}
.cloud g.dim{opacity:.07}
.cloud use.at{stroke:var(--ink);stroke-width:3}
.tip{position:absolute;z-index:3;pointer-events:none;background:var(--paper);border:1px solid var(--line);
border-radius:.4rem;padding:.4rem;width:7.4rem;font-size:.76rem;line-height:1.3;box-shadow:0 2px 10px rgb(0 0 0/.25)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem .4rem;list-style:none;margin:.5rem 0;padding:0}
.legend button{display:flex;align-items:center;gap:.35rem;font:inherit;font-size:.84rem;color:var(--ink);
background:none;border:1px solid var(--line);border-radius:1rem;padding:.15rem .6rem;cursor:pointer;text-align:left}
.legend button[aria-pressed=true]{background:var(--card);border-color:var(--accent)}
.legend svg{width:.8rem;height:.8rem;flex:none}
footer{padding:1rem;font-size:.85rem}
@media (max-width:30rem){.matrix{font-size:.72rem}.matrix th,.matrix td{padding:.2rem .1rem}
.matrix td,.matrix thead th{min-width:1.45rem}.matrix tbody th{max-width:5.4rem}th,td{padding:.28rem .4rem}
.mark{transform:scale(1.7)}}
@media print{nav,.tip{display:none}section{break-inside:auto}figure,.strip,.gallery li,.cards li{break-inside:avoid}
.wide,.strip{overflow:visible}.strip{flex-wrap:wrap}body{font-size:11pt}}
"""
    + _LIGHT
    + ".k6{fill:currentColor;color:inherit}"
    + "@media (prefers-color-scheme:dark){.k0{fill:#3b82d6;color:#3b82d6}.k5{fill:#8fd3ff;color:#8fd3ff}"
    + ".k7{fill:#c7a55a;color:#c7a55a}}"
)

# The point nearest to the pointer, a tap, or the arrow keys shows its picture; a class's button dims the others.
# Texts go in as textContent, pictures by the class names that the style sheet has: no markup is ever made of data.
SCRIPT = """
(()=>{const box=document.getElementById("cloud");if(!box)return;
const svg=box.querySelector("svg"),tip=box.querySelector(".tip");
const data=JSON.parse(document.getElementById("cloud-data").textContent);
const marks=[...svg.querySelectorAll("g>use")],groups=[...svg.querySelectorAll("g")];
const buttons=[...box.querySelectorAll("button")];
const at=marks.map(m=>[+m.getAttribute("x"),+m.getAttribute("y")]);
let now=-1,only=-1;
const shown=i=>only<0||marks[i].parentNode===groups[only];
const show=i=>{
if(now>=0)marks[now].classList.remove("at");
now=i;tip.hidden=i<0;if(i<0)return;
marks[i].classList.add("at");tip.replaceChildren();
const [key,...lines]=data[i];
const picture=document.createElement("span");
picture.className="p "+(key||"none");if(!key)picture.textContent="no picture";tip.append(picture);
for(const line of lines){const s=document.createElement("span");s.textContent=line;tip.append(s)}
const r=svg.getBoundingClientRect(),scale=r.width/svg.viewBox.baseVal.width;
const x=at[i][0]*scale,y=at[i][1]*scale,w=tip.offsetWidth,h=tip.offsetHeight;
tip.style.left=Math.max(0,Math.min(r.width-w,x+w+14<r.width?x+12:x-w-12))+"px";
tip.style.top=Math.max(0,Math.min(y-h/3,r.height-h))+"px"};
const near=e=>{const r=svg.getBoundingClientRect(),scale=r.width/svg.viewBox.baseVal.width;
const x=(e.clientX-r.left)/scale,y=(e.clientY-r.top)/scale;let best=-1,least=(28/scale)**2;
at.forEach((p,i)=>{const d=(p[0]-x)**2+(p[1]-y)**2;if(d<least&&shown(i)){least=d;best=i}});
if(best!==now)show(best)};
svg.addEventListener("pointermove",near);svg.addEventListener("pointerdown",near);
svg.addEventListener("pointerleave",e=>{if(e.pointerType==="mouse")show(-1)});
svg.addEventListener("blur",()=>show(-1));
svg.addEventListener("keydown",e=>{
const step={ArrowRight:1,ArrowDown:1,ArrowLeft:-1,ArrowUp:-1}[e.key];
if(e.key==="Escape")show(-1);
if(!step)return;
e.preventDefault();let i=now;
for(let n=0;n<marks.length;n++){i=(i+step+marks.length)%marks.length;if(shown(i)){show(i);return}}});
buttons.forEach((b,i)=>b.addEventListener("click",()=>{only=only===i?-1:i;show(-1);
buttons.forEach((o,j)=>o.setAttribute("aria-pressed",String(j===only)));
groups.forEach((g,j)=>g.classList.toggle("dim",only>=0&&j!==only))}));
})();
"""
